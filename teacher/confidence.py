"""Confidence of an answer, from quantities that the method computes on the way.

Every kind is in [0, 1], higher for better:

- ``peak_mass``: share of the heatmap, raised to a power, around the answer;
- ``peak``: attention of the prompt at the highest cell;
- ``entropy``: 1 minus the entropy of the attention relative to an even spread;
- ``prompt_agreement``: how close together the maxima of the embeddings of a point are;
- ``cycle``: distance from the query to the match of the answer in the source;
- ``flip_agreement``: distance from the answer to the answer in the target flipped the other way;
- ``flip_consistency``: peak mass of the neighbourhood consensus of the images as they are and both flipped.

Prompt agreement, cycle and flip agreement fall off with a distance d, in fractions of the image's side, as exp(-d / 0.1).
"""

import math

import torch
from torch import Tensor

from distill.core.geometry import cell_centres
from distill.core.readout import argmax

RADIUS = 0.1


def peak_mass(heatmap: Tensor, points: Tensor, power: float = 2.0) -> Tensor:
    """Returns (B, N) in [0, 1]: share of the heatmap, raised to a power, within 0.1 of the side of the answer.

    Args:
        heatmap: (B, N, h, w), non-negative.
        points: (B, N, 2) in fractions of the sides.
        power: of the heatmap. Consensus repeats what the map says and makes it overconfident; a lower power corrects that.
    """
    centres = cell_centres((heatmap.shape[-2], heatmap.shape[-1]), (1, 1), heatmap)
    near = (centres - points[..., None, None, :]).norm(dim=-1) <= RADIUS
    mass = heatmap.clamp_min(0) ** power
    return (mass * near).sum((-2, -1)) / mass.sum((-2, -1)).clamp_min(1e-12)


def relative_negentropy(maps: Tensor) -> Tensor:
    """Returns (N,) in [0, 1]: 1 minus the entropy of ``maps`` (N, h, w) relative to that of an even spread."""
    share = maps.flatten(1) / maps.flatten(1).sum(1, keepdim=True).clamp_min(1e-30)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return (1 - entropy / math.log(max(2, share.shape[1]))).clamp(0, 1)


def prompt_agreement(maps: Tensor) -> Tensor:
    """Returns (N,) in (0, 1]: how close together the maxima of the maps (N, E, h, w) of E embeddings are."""
    points = argmax(maps, (1, 1))
    distance = (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    return exponential_weight(distance)


def exponential_weight(distance: Tensor) -> Tensor:
    """Returns exp(-d / 0.1) of distances in fractions of the image's side."""
    return torch.exp(-distance / RADIUS)


def joint(parts: list[Tensor]) -> Tensor:
    """Returns (N,) in [0, 1]: the geometric mean of several confidences (N,); of a single one, itself."""
    if len(parts) == 1:
        return parts[0].clamp(0, 1)
    return torch.stack(parts).clamp(1e-6, 1).log().mean(0).exp()
