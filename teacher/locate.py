"""Second phase: where in the target image the prompts' attention peaks."""

import torch
from torch import Tensor

from distill.readout import argmax
from teacher.crops import CORNERS, WHOLE, choose_crops, paste
from teacher.settings import Settings
from teacher.views import Views, generator


@torch.no_grad()
def locate(views: Views, prompts: Tensor, settings: Settings, side: int) -> Tensor:
    """Returns each prompt's attention over the target image, accumulated over crops.

    The first crops show every pixel; the others are taken around the maximum found so far. Each cell is divided by
    how often it was seen.

    Args:
        views: of the target image.
        prompts: (R, L, D).
        settings: of the method.
        side: cells a side of the returned maps.

    Returns:
        (R, layers, side, side).
    """
    rows = len(prompts)
    first = CORNERS if settings.crops >= len(CORNERS) else (WHOLE,)
    random = generator(settings.seed, "locate")
    priority = torch.rand(1, len(views.boxes), generator=random).repeat(rows, 1).to(views.boxes)
    total, seen = torch.zeros(()), torch.zeros(())
    for look in range(settings.crops):
        if look < len(first):
            crop_of = torch.full((rows,), first[look], device=prompts.device)
        else:
            peak = argmax((total / seen).mean(1, keepdim=True), (1, 1))[:, 0]
            crop_of = choose_crops(peak, views.boxes, priority, settings.crop_margin)
        priority.scatter_(1, crop_of[:, None], -torch.inf)
        boxes = views.boxes[crop_of]
        pasted = [paste(layer_map, boxes, side) for layer_map in views.attend(prompts, crop_of, look)]
        total = total.to(prompts.device) + torch.stack([p for p, _ in pasted], dim=1)
        seen = seen.to(prompts.device) + pasted[0][1][:, None]
    return total / seen


def combine(maps: Tensor, layer_temperature: float | None) -> Tensor:
    """Returns one map for each point from those of its embeddings and layers.

    Args:
        maps: (N, embeddings, layers, side, side).
        layer_temperature: of a softmax over the pixels of each layer, before the layers are averaged; without it they
            are averaged as they are.

    Returns:
        (N, side, side).
    """
    maps = maps.mean(1)
    if layer_temperature is not None:
        maps = (maps.flatten(-2) / layer_temperature).softmax(-1).view_as(maps)
    return maps.mean(1)
