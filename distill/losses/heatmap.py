"""Kullback-Leibler divergence from the teacher's heatmap."""

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.precision import in_single, without_autocast
from distill.losses.base import Example, weighted_mean

LEAST = -1e4
"""Logarithm of the least probability of a cell, far below what scores of a network come to."""


class HeatmapKL:
    """Kullback-Leibler divergence of the student's distribution over target cells from the teacher's; at least 0.

    Both are compared on the coarser of the two grids, to which the finer distribution is summed.

    Args:
        sharpness: power that the teacher's map is raised to before it is normalised to a distribution, the inverse of a
            temperature; above 1 it suppresses the map's uniform background.

    Raises:
        ConfigError: for a sharpness that is not positive.
    """

    def __init__(self, sharpness: float = 4.0) -> None:
        if sharpness <= 0:
            raise ConfigError(f"Expected the sharpness of HeatmapKL to be positive but got {sharpness}.")
        self.sharpness = sharpness

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        label, scores, heatmap = example.label, in_single(example.prediction.heatmap), in_single(example.label.heatmap)
        target = heatmap.clamp_min(0) / heatmap.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        target = target.pow(self.sharpness)
        # Scores may be -inf, in cells that a student rules out; all others keep their gradient.
        found = scores.flatten(2).log_softmax(-1).clamp_min(LEAST).view_as(scores)
        size = tuple(min(a, b) for a, b in zip(target.shape[-2:], scores.shape[-2:], strict=True))
        target, found = summed_up(target, size).flatten(2), log_summed_up(found, size).flatten(2)
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-12)
        divergence = (torch.xlogy(target, target) - target * found).sum(-1)
        # Rounding may leave it a little below 0.
        return weighted_mean(divergence.clamp_min(0), label.confidence, example.pairs.kps_mask)


def summed_up(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns (B, N, h', w') the sums of maps (B, N, h, w) over the cells of a coarser grid ``size`` (h', w').

    A cell that lies in several coarser ones is divided by its area, so that each map keeps its sum.
    """
    rows, columns = (_overlap(maps.shape[axis], size[axis], maps) for axis in (-2, -1))
    with without_autocast(maps):
        return rows @ maps @ columns.T


def log_summed_up(logs: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns the logarithm of :func:`summed_up` of ``logs.exp()``, exact also where that is too small for its type."""
    for coarser in size:  # rows, then columns
        logs = _log_summed_rows(logs, coarser).transpose(-2, -1)
    return logs


def _log_summed_rows(logs: Tensor, coarser: int) -> Tensor:
    """Returns (..., coarser, w) of (..., h, w): the same for rows alone."""
    cells = logs.shape[-2]
    if cells == coarser:
        return logs
    most = -(-cells // coarser) + (cells % coarser > 0)  # rows that a coarser one meets
    shares, rows = _overlap(cells, coarser, logs).topk(most)
    met = logs.index_select(-2, rows.flatten()).unflatten(-2, rows.shape)
    return (met + shares.log()[..., None]).logsumexp(-2)


def _overlap(cells: int, coarser: int, like: Tensor) -> Tensor:
    """Returns (coarser, cells): the share of each of ``cells`` equal parts of a line that lies in each coarser part.

    Lengths are whole numbers: with ``cells * coarser`` units to the line a cell has ``coarser`` and a coarser one ``cells``.
    """
    fine = torch.arange(cells, device=like.device) * coarser
    coarse = torch.arange(coarser, device=like.device)[:, None] * cells
    shared = torch.minimum(fine + coarser, coarse + cells) - torch.maximum(fine, coarse)
    return shared.clamp_min(0).to(like.dtype) / coarser
