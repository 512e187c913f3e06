"""Agreement of two matchers, independent of the truth."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.metrics.pck import alpha_key, with_slack


def agreement(
    first: Sequence[NDArray], second: Sequence[NDArray], pck_threshold: Sequence[float], alphas: Sequence[float]
) -> dict[str, float]:
    """Compares two matchers' points.

    Args:
        first: for each pair (n, 2) x, y in original target pixels.
        second: the same of the other matcher.
        pck_threshold: tolerance base of each pair, px.
        alphas: fractions of it.

    Returns:
        "median_px", the median distance, "median_relative", the same in tolerance bases, and "within_<alpha>", the
        percentage of points that lie that close together.
    """
    distance = np.concatenate([np.linalg.norm(a - b, axis=-1) for a, b in zip(first, second, strict=True)])
    base = np.concatenate([np.full(len(a), t) for a, t in zip(first, pck_threshold, strict=True)])
    shares = {
        f"within_{alpha_key(alpha)}": float(100 * np.mean(distance <= with_slack(alpha * base))) for alpha in alphas
    }
    return {"median_px": float(np.median(distance)), "median_relative": float(np.median(distance / base))} | shares
