"""How far two matchers agree, whatever the truth."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from distill.metrics.pck import ALPHAS, alpha_key


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
    return _summary(distance, base, alphas)


class Agreement(Metric):
    """Accumulates the agreement of two matchers over batches and processes.

    Args:
        alphas: fractions of the tolerance base.
    """

    full_state_update = False
    distance: list[Tensor]
    base: list[Tensor]

    def __init__(self, alphas: Sequence[float] = ALPHAS) -> None:
        super().__init__()
        self.alphas = tuple(alphas)
        self.add_state("distance", [], dist_reduce_fx="cat")
        self.add_state("base", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)

    def update(self, first: Tensor, second: Tensor, kps_mask: Tensor, pck_threshold: Tensor) -> None:
        """Adds a batch.

        Args:
            first: (B, N, 2) x, y in original target pixels.
            second: (B, N, 2), the same of the other matcher.
            kps_mask: (B, N) bool, which points count.
            pck_threshold: (B,) tolerance base, px.
        """
        distance = (first.double() - second.double()).norm(dim=-1)
        self.distance.append(distance[kps_mask])
        self.base.append(pck_threshold.double()[:, None].expand_as(distance)[kps_mask])

    def compute(self) -> dict[str, float]:
        """Returns what :func:`agreement` returns; NaN when nothing was added."""
        distance, base = _joined(self.distance), _joined(self.base)
        if not len(distance):
            return dict.fromkeys(_summary(np.ones(1), np.ones(1), self.alphas), float("nan"))
        return _summary(distance, base, self.alphas)


def _joined(state: list[Tensor] | Tensor) -> NDArray:
    """Returns what a list of tensors holds; torchmetrics has joined it already where processes have been."""
    values = [state] if isinstance(state, Tensor) else state
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(value.double().cpu() for value in values)]).numpy()


def _summary(distance: NDArray, base: NDArray, alphas: Sequence[float]) -> dict[str, float]:
    shares = {f"within_{alpha_key(alpha)}": float(100 * np.mean(distance <= alpha * base)) for alpha in alphas}
    return {"median_px": float(np.median(distance)), "median_relative": float(np.median(distance / base))} | shares
