"""Matchers that are neither teacher nor student."""
