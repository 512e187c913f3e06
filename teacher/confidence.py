"""How far an answer can be trusted, judged from what the method sees on the way.

Every kind is in [0, 1], higher for better:

- ``peak_mass``: how much of the heatmap, raised to a power, lies around the answer;
- ``peak``: how strongly the prompt attends to the highest cell;
- ``entropy``: how far the heatmap is from being spread evenly, 1 less its relative entropy;
- ``spread``: how close together the embeddings' own maxima are;
- ``cycle``: how close to the query a prompt for the answer lights up in the source;
- ``mirror``: how close to the answer the prompt lights up in the mirrored target;
- ``second_look``: how much of what neighbours say of both images, as they are and mirrored, lies around the answer.

Spread, cycle and mirror fall off with a distance d, in fractions of the image's side, as exp(-d / 0.1).
"""

import math

import torch
from torch import Tensor

from distill.core.geometry import cell_centres
from distill.core.readout import argmax

RADIUS = 0.1


def peak_mass(heatmap: Tensor, points: Tensor, power: float = 2.0) -> Tensor:
    """Returns (B, N) in [0, 1]: how much of the heatmap, raised to a power, lies around the answer.

    Args:
        heatmap: (B, N, h, w), non-negative.
        points: (B, N, 2) in fractions of the sides.
        power: of the heatmap. Votes that repeat each other make it surer than it has reason to be, and a power below 1
            takes that back.
    """
    centres = cell_centres((heatmap.shape[-2], heatmap.shape[-1]), (1, 1), heatmap)
    near = (centres - points[..., None, None, :]).norm(dim=-1) <= RADIUS
    mass = heatmap.clamp_min(0) ** power
    return (mass * near).sum((-2, -1)) / mass.sum((-2, -1)).clamp_min(1e-12)


def concentration(maps: Tensor) -> Tensor:
    """Returns (N,) in [0, 1]: 1 less the entropy of ``maps`` (N, h, w) relative to an even spread."""
    share = maps.flatten(1) / maps.flatten(1).sum(1, keepdim=True).clamp_min(1e-30)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return (1 - entropy / math.log(max(2, share.shape[1]))).clamp(0, 1)


def unanimity(maps: Tensor) -> Tensor:
    """Returns (N,) in (0, 1]: how close together the maxima of the maps (N, E, h, w) of E embeddings are."""
    points = argmax(maps, (1, 1))
    distance = (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    return closeness(distance)


def closeness(distance: Tensor) -> Tensor:
    """Returns exp(-d / 0.1) of distances in fractions of the image's side."""
    return torch.exp(-distance / RADIUS)


def joint(parts: list[Tensor]) -> Tensor:
    """Returns the geometric mean of several confidences, in [0, 1]; of a single one, itself."""
    if len(parts) == 1:
        return parts[0].clamp(0, 1)
    return torch.stack(parts).clamp(1e-6, 1).log().mean(0).exp()
