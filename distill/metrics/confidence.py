"""How well a confidence separates right from wrong points: AUROC, and PCK of the points with the highest confidence."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torchmetrics.functional.classification import binary_auroc

SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)


def auroc(confidence: ArrayLike, right: ArrayLike) -> float:
    """Returns the probability that a right point has more confidence than a wrong one; ties count half.

    Args:
        confidence: (P,) in [0, 1].
        right: (P,) bool.

    Returns:
        In [0, 1], 0.5 for a confidence that says nothing; NaN when all points are right or all are wrong.
    """
    sure, good = torch.as_tensor(np.asarray(confidence, np.float64)), torch.as_tensor(np.asarray(right, bool))
    if good.all() or not good.any():
        return float("nan")  # torchmetrics says 0
    return float(binary_auroc(sure, good.int()))


def kept_pck(confidence: ArrayLike, right: ArrayLike, shares: Sequence[float] = SHARES) -> dict[str, float]:
    """Returns the percentage of right points among those of highest confidence, by the share that is kept: {"0.50": percent, ...}.

    Args:
        confidence: (P,), higher for surer. Among equals each is as right as they are on average, whatever their order.
        right: (P,) bool.
        shares: of the points to keep, in (0, 1]; at least one point is kept.
    """
    _, level = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)  # 0 is the highest
    share_right = np.bincount(level, np.asarray(right, dtype=bool)) / np.bincount(level)
    good = share_right[np.sort(level)]
    return {f"{share:.2f}": float(100 * good[: max(1, round(share * len(good)))].mean()) for share in shares}
