"""Matchers that are neither teacher nor student: baselines and wrappers."""
