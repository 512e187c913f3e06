"""Second phase: where in the target images the prompts' attention peaks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.core.geometry import cell_centres
from distill.core.readout import argmax, windowed_soft_argmax
from teacher.adaptive_batch import AdaptiveBatch
from teacher.crop_attention import CropAttention
from teacher.crop_sampling import CORNERS, WHOLE, CropPlan
from teacher.crops import paste
from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.settings import Settings


class TargetImages:
    """Target images, in which prompts are localised, those of all images together.

    Args:
        features: of images in the frozen model.
        batch: how many prompts run together.
        timestep: diffusion time; None for the target's of the settings.
    """

    def __init__(self, features: FeatureCache, batch: AdaptiveBatch, timestep: int | None = None) -> None:
        settings = features.settings
        self.features, self.settings, self.batch, self.side = features, settings, batch, features.model.map_side
        if timestep is None:
            timestep = settings.timestep if settings.locate_timestep is None else settings.locate_timestep
        self.timestep = timestep

    def attention_maps(self, images: Sequence[KeyedImage], prompts: Tensor, token: Tensor) -> Tensor:
        """Returns each prompt's attention over its target image, accumulated over crops.

        Args:
            images: of the prompts.
            prompts: (R, L, D).
            token: (R,) int64, which of the tokens after the start is read, from 0.

        Returns:
            (R, layers, side, side).
        """
        return torch.cat(
            self.batch.run(lambda rows: self._accumulate(images[rows], prompts[rows], token[rows]), len(prompts))
        )

    @torch.no_grad()
    def _accumulate(self, images: Sequence[KeyedImage], prompts: Tensor, token: Tensor) -> Tensor:
        """Adds up what crops show, and divides each cell by how often it was seen.

        The first crops show every pixel; the others are taken around the maximum found so far.
        """
        n_crops, device = self.settings.crops, prompts.device
        first = CORNERS if self.settings.starts_at_corners else (WHOLE,)
        attention = CropAttention(self.features, images, self.timestep)
        # All prompts are shown the same crops, named as they always were: the name is part of a seed.
        sampler = attention.sampler([("locate",)] * len(prompts), n_crops, replace=False)
        plan, place = CropPlan.of([sampler.numbered(number) for number in first]), 0
        shown, draw = attention.prepare(plan), torch.zeros(1, dtype=torch.int64, device=device)
        total, seen = torch.zeros((), device=device), torch.zeros((), device=device)
        for number in range(n_crops):
            if number >= len(first):
                maximum = argmax((total / seen).mean(1, keepdim=True), (1, 1))
                plan, place = CropPlan.of([sampler.at(maximum)]), 0
                shown = attention.prepare(plan, number)
                draw.zero_()
            maps = shown.attend(prompts, draw, tokens=self.settings.points_per_prompt)
            pasted = [paste(of_token(layer_map, token), plan.boxes[place], self.side) for layer_map in maps]
            total = total + torch.stack([p for p, _ in pasted], dim=1)
            seen = seen + pasted[0][1][:, None]
            draw, place = draw + 1, place + 1
        return total / seen


def of_token(maps: Tensor, token: Tensor) -> Tensor:
    """Returns (R, h, w), the map of one token (R,) of each prompt out of ``maps`` (R, T, h, w)."""
    return maps[torch.arange(len(maps), device=maps.device), token]


def aggregate_maps(maps: Tensor, layer_temperature: float | None, flipped: Tensor | None = None) -> Tensor:
    """Returns one map for each point from those of its embeddings and layers.

    Args:
        maps: (N, embeddings, layers, side, side).
        layer_temperature: of a softmax over the pixels of each layer, before the layers are averaged; None averages
            them as they are.
        flipped: the same of the flipped target image, flipped back. What peaks there as well as in the image itself is
            the same from either side; each cell is weighed by the share that the image itself has.

    Returns:
        (N, side, side).
    """
    maps = maps.mean(1)
    if flipped is not None:
        maps = maps.square() / (maps + flipped.mean(1)).clamp_min(1e-12)
    if layer_temperature is not None:
        maps = (maps.flatten(-2) / layer_temperature).softmax(-1).view_as(maps)
    return maps.mean(1)


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
        curvature = 2 * at - before - after
        vertex = (after - before) / (2 * curvature.clamp_min(1e-30))
        offsets.append(torch.where(inside & (curvature > 0), vertex, 0.0))
    centres = cell_centres((h, w), (1, 1), heatmap).flatten(0, 1)[best]
    return centres + torch.stack(offsets, dim=-1).clamp(-0.5, 0.5) / heatmap.new_tensor([w, h])
