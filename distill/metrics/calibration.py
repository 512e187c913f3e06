"""Calibration of confidences (Guo et al., "On calibration of modern neural networks", ICML 2017)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binned_statistic

from distill.core.errors import DataError
from distill.metrics.confidence import auroc


def calibration(confidence: NDArray, correct: NDArray, bins: int = 10) -> dict[str, Any]:
    """Compares confidences with how often their points are right.

    Args:
        confidence: (R,) in [0, 1].
        correct: (R,) bool, such as whether a point lies within 0.10 of the tolerance base.
        bins: how many of equal width on [0, 1]; the lower border of each belongs to it, and 1 to the last.

    Returns:
        "ece", the expected calibration error: the mean distance, weighted by counts, between each bin's mean confidence
        and its share of right points; "brier", the mean squared difference; "auroc", the probability that a right point
        is surer than a wrong one (ties half), NaN when one kind is missing; and "bins", a list of "count", "confidence"
        and "accuracy" for each that is not empty. All are fractions.

    Raises:
        DataError: when the two differ in length, nothing is given, or a confidence lies outside [0, 1].
    """
    sure, right = np.asarray(confidence, float).ravel(), np.asarray(correct, float).ravel()
    if len(sure) != len(right) or not len(sure):
        raise DataError(f"Expected as many confidences as results, and some, but got {len(sure)} and {len(right)}.")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise DataError(f"Expected confidences in [0, 1] but got {sure.min():.3g} to {sure.max():.3g}.")
    # Not torchmetrics' binary_calibration_error: it returns no bins, and confidences of exactly 1 get a bin of their own.
    count = binned_statistic(sure, sure, "count", bins, (0, 1)).statistic
    means = binned_statistic(sure, [sure, right], "mean", bins, (0, 1)).statistic
    rows = [
        {"count": int(n), "confidence": float(confidence), "accuracy": float(accuracy)}
        for n, confidence, accuracy in zip(count, *means, strict=True)
        if n
    ]
    return {
        "ece": sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(sure),
        "brier": float(np.mean((sure - right) ** 2)),
        "auroc": auroc(sure, right > 0.5),
        "bins": rows,
    }
