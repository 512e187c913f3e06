"""Whether a matcher knows when it is wrong.

A confidence is good when right points have more of it than wrong ones (AUROC), and when the least sure points can be
left out to good effect (PCK of what is kept, against the share kept).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)


def auroc(confidence: ArrayLike, right: ArrayLike) -> float:
    """Returns the probability that a right point has more confidence than a wrong one; ties count half.

    Args:
        confidence: (P,), any monotone scale.
        right: (P,) bool.

    Returns:
        In [0, 1], 0.5 for a confidence that says nothing; NaN when all points are right or all are wrong.
    """
    sure, good = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    n_good, n_bad = int(good.sum()), int((~good).sum())
    if not n_good or not n_bad:
        return float("nan")
    _, place, counts = np.unique(sure, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # the mean rank of equal values
    return float((ranks[good].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


def kept_pck(confidence: ArrayLike, right: ArrayLike, shares: Sequence[float] = SHARES) -> dict[str, float]:
    """Returns the percentage of right points among the surest ones, by the share that is kept: {"0.50": percent, ...}.

    Args:
        confidence: (P,), higher for surer; among equals the order given decides.
        right: (P,) bool.
        shares: of the points to keep, in (0, 1]; at least one point is kept.
    """
    good = np.asarray(right, dtype=bool)[np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")]
    return {f"{share:.2f}": float(100 * good[: max(1, round(share * len(good)))].mean()) for share in shares}
