"""Second phase: where in the target image the prompts' attention peaks."""

import torch
from torch import Tensor

from distill.core.readout import argmax
from teacher.crop_attention import CropAttention
from teacher.crop_sampling import CORNERS, WHOLE
from teacher.crops import paste
from teacher.settings import Settings


@torch.no_grad()
def localize(views: CropAttention, prompts: Tensor, token: Tensor, settings: Settings, side: int) -> Tensor:
    """Returns each prompt's attention over the target image, accumulated over crops.

    The first crops show every pixel; the others are taken around the maximum found so far. Each cell is divided by
    how often it was seen.

    Args:
        views: of the target image.
        prompts: (R, L, D).
        token: (R,) int64, which of the tokens after the start is read, from 0.
        settings: of the method.
        side: cells a side of the returned maps.

    Returns:
        (R, layers, side, side).
    """
    rows, tokens = torch.arange(len(prompts), device=prompts.device), int(token.max()) + 1
    first = CORNERS if settings.crops >= len(CORNERS) else (WHOLE,)
    looks = views.looks([("locate",)] * len(prompts), once=True)
    total, seen = torch.zeros((), device=prompts.device), torch.zeros((), device=prompts.device)
    for look in range(settings.crops):
        if look < len(first):
            aim = looks.numbered(first[look])
        else:
            aim = looks.at(argmax((total / seen).mean(1, keepdim=True), (1, 1)))
        maps = views.attend(prompts, aim, look, tokens)
        pasted = [paste(layer_map[rows, token], aim.boxes, side) for layer_map in maps]
        total = total + torch.stack([p for p, _ in pasted], dim=1)
        seen = seen + pasted[0][1][:, None]
    return total / seen


def aggregate_maps(maps: Tensor, layer_temperature: float | None, mirrored: Tensor | None = None) -> Tensor:
    """Returns one map for each point from those of its embeddings and layers.

    Args:
        maps: (N, embeddings, layers, side, side).
        layer_temperature: of a softmax over the pixels of each layer, before the layers are averaged; without it they
            are averaged as they are.
        mirrored: the same of the mirrored target image, mirrored back. What lights up there as well as in the image
            itself looks the same from either side; each cell is weighed by the share that the image itself has.

    Returns:
        (N, side, side).
    """
    maps = maps.mean(1)
    if mirrored is not None:
        maps = maps.square() / (maps + mirrored.mean(1)).clamp_min(1e-12)
    if layer_temperature is not None:
        maps = (maps.flatten(-2) / layer_temperature).softmax(-1).view_as(maps)
    return maps.mean(1)
