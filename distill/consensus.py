"""Agreement among neighbouring matches: what sets a match apart from a lookalike.

All functions work on the scores between all cells of a source and all cells of a target, (B, h, w, h', w'). Points next
to each other in one image lie next to each other in the other, so a match that its neighbours share, moved by the same
offset, is likelier than one that they do not (Rocco et al., "Neighbourhood consensus networks", NeurIPS 2018; Min et
al., "Hyperpixel flow", ICCV 2019, who vote for offsets over the whole image). Nothing is learned here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mutual_probability(scores: Tensor) -> Tensor:
    """Returns (B, h, w, h', w'): the geometric mean of a softmax over target cells and one over source cells.

    Args:
        scores: (B, h, w, h', w'), logits.
    """
    flat = scores.flatten(3).flatten(1, 2)
    return (flat.softmax(2) * flat.softmax(1)).sqrt().view_as(scores)


def neighbourhood_votes(probability: Tensor, sigma_cells: float) -> Tensor:
    """Sums each match's probability with those of the matches of neighbouring cells that share its offset.

    Args:
        probability: (B, h, w, h', w').
        sigma_cells: of the Gaussian weight of a neighbour by its distance, in cells; it is cut off at 1.7 sigma.

    Returns:
        (B, h, w, h', w').
    """
    radius = max(1, round(1.7 * sigma_cells))
    return _along(_along(probability, 1, sigma_cells, radius), 2, sigma_cells, radius)


def consensus(scores: Tensor, sigma_cells: float) -> tuple[Tensor, Tensor]:
    """Returns what neighbours say of each match, and how well two images agree.

    Args:
        scores: (B, h, w, h', w'), logits.
        sigma_cells: see :func:`neighbourhood_votes`. Agreement is judged by half of it: it has to tell an image from its
            mirror image, in which the near neighbourhood is what differs.

    Returns:
        (B, h, w, h', w'), the logarithm of the votes, and (B,), the mean over source cells of the best vote.
    """
    probability = mutual_probability(scores)
    votes = neighbourhood_votes(probability, sigma_cells)
    near = neighbourhood_votes(probability, sigma_cells / 2)
    return votes.clamp_min(1e-9).log(), near.flatten(3).amax(-1).mean((1, 2))


def refine_scores(scores: Tensor, sigma_cells: float, strength: float) -> tuple[Tensor, Tensor]:
    """Adds the logarithm of the neighbours' votes to the scores.

    Args:
        scores: (B, h, w, h', w'), logits.
        sigma_cells: see :func:`neighbourhood_votes`.
        strength: of the votes, relative to the scores; 0 leaves the scores as they are.

    Returns:
        The new logits, and (B,) how well the two images agree, see :func:`consensus`.
    """
    votes, agreement = consensus(scores, sigma_cells)
    return scores + strength * votes, agreement


def _along(values: Tensor, axis: int, sigma: float, radius: int) -> Tensor:
    """Sums over equal steps along one axis of the source and the same axis of the target, which is two axes further.

    Matches of one offset stand on a diagonal of these two axes. The diagonals are brought into columns, where the weighted
    sum is one product of matrices: many times faster than a convolution, and as easy to export.
    """
    planes = values.movedim((axis, axis + 2), (-2, -1))
    (rows, columns), length = planes.shape[-2:], planes.shape[-2] + planes.shape[-1]
    # Cut into rows that are one cell shorter, each row slides one cell to the right of the one above it.
    laid = F.pad(planes.flip(-2), (0, rows)).flatten(-2)[..., : rows * (length - 1)]
    steps = torch.arange(rows, dtype=values.dtype, device=values.device)
    steps = steps - steps[:, None]
    weights = torch.exp(-steps.square() / (2 * sigma**2)) * (steps.abs() <= radius)
    summed = weights @ laid.unflatten(-1, (rows, length - 1))
    back = F.pad(summed.flatten(-2), (0, rows)).unflatten(-1, (rows, length))
    return back[..., :columns].flip(-2).movedim((-2, -1), (axis, axis + 2))
