"""From a teacher's heatmap to a point."""

import math

import torch
from torch import Tensor

from distill.core.geometry import cell_centres
from distill.core.readout import argmax, windowed_soft_argmax
from teacher.settings import Settings


def read_out(heatmap: Tensor, settings: Settings) -> Tensor:
    """Returns (B, N, 2) x, y in fractions of the sides, read off ``heatmap`` (B, N, h, w) as the settings say."""
    if settings.readout == "argmax":
        return argmax(heatmap, (1, 1))
    if settings.readout == "subpixel":
        return subpixel(heatmap)
    temperature = settings.readout_temperature * heatmap.amax((-2, -1), keepdim=True).flatten(2)
    radius = heatmap.shape[-1] / 16 if settings.readout == "windowed_soft_argmax" else math.inf
    return windowed_soft_argmax(heatmap, (1, 1), temperature, radius_cells=radius)


def subpixel(heatmap: Tensor) -> Tensor:
    """Returns (B, N, 2) the vertex of the parabolas through the highest cell and its neighbours along x and along y.

    At the border, where a neighbour is missing, the cell's centre is kept along that axis.

    Args:
        heatmap: (B, N, h, w).
    """
    h, w = heatmap.shape[-2:]
    flat = heatmap.flatten(2)
    best = flat.argmax(-1)
    column, row = best % w, best // w
    offsets = []
    for place, size, step in ((column, w, 1), (row, h, w)):
        inside = (place > 0) & (place < size - 1)
        before, at, after = (flat.gather(-1, (best + shift * inside)[..., None])[..., 0] for shift in (-step, 0, step))
        bend = 2 * at - before - after
        offsets.append(torch.where(inside & (bend > 0), (after - before) / (2 * bend.clamp_min(1e-30)), 0.0))
    centres = cell_centres((h, w), (1, 1), heatmap).flatten(0, 1)[best]
    return centres + torch.stack(offsets, dim=-1).clamp(-0.5, 0.5) / heatmap.new_tensor([w, h])
