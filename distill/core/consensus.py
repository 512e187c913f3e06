"""Agreement among neighbouring matches: what sets a match apart from a lookalike.

All functions work on the scores between all cells of a source and all cells of a target, (B, h, w, h', w'). Points next
to each other in one image lie next to each other in the other, so a match that its neighbours share, moved by the same
offset, is likelier than one that they do not (Rocco et al., "Neighbourhood consensus networks", NeurIPS 2018; Min et
al., "Hyperpixel flow", ICCV 2019, who vote for offsets over the whole image). Nothing is learned here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST = 1e-9
"""Votes are taken to be at least this before their logarithm is taken."""


def mutual_probability(scores: Tensor) -> Tensor:
    """Returns (B, h, w, h', w'): the geometric mean of a softmax over target cells and one over source cells.

    Args:
        scores: (B, h, w, h', w'), logits.
    """
    flat = scores.flatten(3).flatten(1, 2)
    return (flat.softmax(2) * flat.softmax(1)).sqrt().view_as(scores)


def neighbourhood_consensus(probability: Tensor, sigma_cells: float) -> Tensor:
    """Sums each match's probability with those of the matches of neighbouring cells that share its offset.

    Args:
        probability: (B, h, w, h', w').
        sigma_cells: of the Gaussian weight of a neighbour by its distance, in cells; it is cut off at 1.7 sigma.

    Returns:
        (B, h, w, h', w').
    """
    return _along(_along(probability, 1, sigma_cells), 2, sigma_cells)


def consensus_at(probability: Tensor, points: Tensor, sigma_cells: float) -> Tensor:
    """Returns the votes for points that may lie between the cells, and in a target that may have finer cells.

    At the centres of cells, and with targets as fine as sources, they are those of :func:`neighbourhood_consensus`; a point
    beside a centre moves each neighbour's matches by its own distance from it. Only the points are paid for.

    Args:
        probability: (B, h, w, h', w').
        points: (B, N, 2) x, y, as fractions of the source's sides.
        sigma_cells: see :func:`neighbourhood_consensus`, in cells of the source.

    Returns:
        (B, N, h', w').
    """
    (h, w), (rows, columns) = probability.shape[1:3], probability.shape[3:]
    down = _carry(points[..., 1], h, rows, sigma_cells)
    across = _carry(points[..., 0], w, columns, sigma_cells)
    summed = torch.einsum("bniyv,bijvu->bnyju", down, probability)
    # A product of matrices, not an einsum: an exported einsum over no points ends ONNX Runtime 1.32.
    return summed.flatten(3) @ across.transpose(3, 4).flatten(2, 3)


def agreement(probability: Tensor, sigma_cells: float) -> Tensor:
    """Returns (B,) how well two images agree: the mean over source cells of the best vote.

    It is judged by half the reach of the votes: it has to tell an image from its mirror image, in which the near
    neighbourhood is what differs.

    Args:
        probability: (B, h, w, h', w').
        sigma_cells: of the votes, see :func:`neighbourhood_consensus`.
    """
    return neighbourhood_consensus(probability, sigma_cells / 2).flatten(3).amax(-1).mean((1, 2))


def _carry(at: Tensor, cells: int, target_cells: int, sigma: float) -> Tensor:
    """Returns (B, N, cells, to, from): how one axis of the target is carried along from each source cell to a point.

    Args:
        at: (B, N) places along the axis, in [0, 1].
        cells: of the source.
        target_cells: of the target.
        sigma: in cells of the source.
    """
    centres = (torch.arange(cells, dtype=at.dtype, device=at.device) + 0.5) / cells
    distance = at[..., None] - centres
    weights = _weights(distance * cells, sigma)
    steps = torch.arange(target_cells, dtype=at.dtype, device=at.device)
    steps = steps[:, None] - steps - (distance * target_cells)[..., None, None]
    return weights[..., None, None] * (1 - steps.abs()).clamp_min(0)


def _weights(cells: Tensor, sigma: float) -> Tensor:
    """Returns how much neighbours count that are so many cells away."""
    reach = max(1, round(1.7 * sigma))
    return torch.exp(-cells.square() / (2 * sigma**2)) * (cells.abs() < reach + 0.5)


def _along(values: Tensor, axis: int, sigma: float) -> Tensor:
    """Sums over equal steps along one axis of the source and the same axis of the target, which is two axes further.

    Matches of one offset stand on a diagonal of these two axes. The diagonals are brought into columns, where the weighted
    sum is one product of matrices: many times faster than a convolution, and as easy to export.
    """
    planes = values.movedim((axis, axis + 2), (-2, -1))
    (rows, columns), length = planes.shape[-2:], planes.shape[-2] + planes.shape[-1]
    # Cut into rows that are one cell shorter, each row slides one cell to the right of the one above it.
    laid = F.pad(planes.flip(-2), (0, rows)).flatten(-2)[..., : rows * (length - 1)]
    steps = torch.arange(rows, dtype=values.dtype, device=values.device)
    summed = _weights(steps - steps[:, None], sigma) @ laid.unflatten(-1, (rows, length - 1))
    back = F.pad(summed.flatten(-2), (0, rows)).unflatten(-1, (rows, length))
    return back[..., :columns].flip(-2).movedim((-2, -1), (axis, axis + 2))
