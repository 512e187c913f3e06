"""Metrics: a pure function and a thin torchmetrics class each."""
