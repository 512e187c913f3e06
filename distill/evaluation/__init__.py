"""Measuring matchers: evaluation, comparison, reports and pictures."""
