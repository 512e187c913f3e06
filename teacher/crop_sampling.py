"""Which crop of an image each prompt looks at next.

Either one of a fixed pool, which is encoded once, or a fresh one. The pool holds, in this order, the whole image, the
four corners, and random places. Boxes and points are in fractions, see :mod:`teacher.crops`.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from teacher.crops import into_crop
from teacher.settings import Settings

WHOLE = 0
CORNERS = (1, 2, 3, 4)


class CropBatch(NamedTuple):
    """What each of R prompts looks at.

    Attributes:
        boxes: (R, 3).
        crop_of: (R,) int64, their numbers in the pool; None when there is no pool.
        names: of the prompts, what their noise is drawn from when there is no pool.
    """

    boxes: Tensor
    crop_of: Tensor | None
    names: Sequence[Hashable]


def generator(*seeds: object) -> torch.Generator:
    """Returns a generator on the CPU whose numbers depend on all of ``seeds`` and on nothing else."""
    digest = hashlib.blake2b(repr(seeds).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def crop_boxes(n_random: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Returns an image's pool of boxes (5 + n_random, 3): whole, corners, random places.

    Args:
        n_random: how many random crops.
        ratio: side of the crops as a fraction of the image's.
        generator: on the CPU.
    """
    free = 1 - ratio
    corners = torch.tensor([[0.0, 0.0], [free, 0.0], [0.0, free], [free, free]])
    offsets = torch.cat([corners, torch.rand(n_random, 2, generator=generator) * free])
    boxes = torch.cat([offsets, torch.full((len(offsets), 1), ratio)], dim=1)
    return torch.cat([torch.tensor([[0.0, 0.0, 1.0]]), boxes])


class PoolCropSampler:
    """The looks of R prompts at crops of a pool.

    Args:
        boxes: (P, 3), the pool.
        names: of the R prompts; each prompt's crops are drawn from its name, so that company does not matter.
        settings: of the method.
        once: whether a prompt looks at no crop twice, in an order of preference drawn once. Otherwise each look draws
            anew, and the whole image, being no crop, is barred.
    """

    def __init__(self, boxes: Tensor, names: Sequence[tuple], settings: Settings, once: bool) -> None:
        self.boxes, self.names, self.margin, self.once = boxes, names, settings.crop_margin, once
        self._random = [generator(settings.seed, *name) for name in names]
        self._barred = torch.zeros(len(names), len(boxes), dtype=torch.bool, device=boxes.device)
        self._barred[:, WHOLE] = not once
        self._priority = self._draw(range(len(names))) if once else torch.empty(0)

    def numbered(self, number: int) -> CropBatch:
        """Has all prompts look at crop ``number`` of the pool."""
        return self._aim(torch.full((len(self.names),), number, device=self.boxes.device), range(len(self.names)))

    def at(self, points: Tensor, rows: Sequence[int] | None = None) -> CropBatch:
        """Has the prompts of ``rows``, all without it, look at points (R, T, 2)."""
        rows = range(len(self.names)) if rows is None else rows
        priority = self._priority[list(rows)] if self.once else self._draw(rows)
        barred = self._barred[list(rows)]
        return self._aim(choose_crops(points, self.boxes, priority.masked_fill(barred, -torch.inf), self.margin), rows)

    def _draw(self, rows: Sequence[int]) -> Tensor:
        drawn = [torch.rand(len(self.boxes), generator=self._random[row]) for row in rows]
        return torch.stack(drawn).to(self.boxes)

    def _aim(self, crop_of: Tensor, rows: Sequence[int]) -> CropBatch:
        if self.once:
            self._barred[torch.tensor(rows, device=crop_of.device), crop_of] = True
        return CropBatch(self.boxes[crop_of], crop_of, [self.names[row] for row in rows])


class RandomCropSampler:
    """The looks of R prompts at crops that are drawn for the purpose, as released.

    A crop is placed at random such that the point keeps ``crop_margin`` off its border, as far as the crop then still
    lies inside the image.

    Args:
        side: of the image, px.
        names: see :class:`PoolCropSampler`.
        settings: of the method.
        device: where the boxes are wanted.
    """

    def __init__(self, side: int, names: Sequence[tuple], settings: Settings, device: torch.device) -> None:
        self.side, self.names, self.settings, self.device = side, names, settings, device
        self._random = [generator(settings.seed, *name) for name in names]

    def numbered(self, number: int) -> CropBatch:
        """Has all prompts look at the whole image (0) or at one of its corners (1 to 4)."""
        if number == WHOLE:
            whole = torch.tensor([[0.0, 0.0, 1.0]], device=self.device).repeat(len(self.names), 1)
            return CropBatch(whole, None, self.names)
        corner = torch.tensor([[[(number - 1) % 2, (number - 1) // 2]]], dtype=torch.float32)
        return self.at(corner.repeat(len(self.names), 1, 1))

    def at(self, points: Tensor, rows: Sequence[int] | None = None) -> CropBatch:
        """See :meth:`PoolCropSampler.at`."""
        rows = range(len(self.names)) if rows is None else rows
        random = torch.stack([torch.rand(2, generator=self._random[row]) for row in rows]).double()
        boxes = fresh_boxes(points.double().cpu(), random, self.side, self.settings)
        return CropBatch(boxes.to(self.device, torch.float32), None, [self.names[row] for row in rows])


def fresh_boxes(points: Tensor, random: Tensor, side: int, settings: Settings) -> Tensor:
    """Places crops around points.

    Args:
        points: (R, T, 2); with several the crop suits them all as far as it can.
        random: (R, 2) in [0, 1), where in the range of places that suit.
        side: of the image, px, to whole ones of which everything is rounded down if the settings say so.
        settings: ratio, margin, edges.

    Returns:
        (R, 3).
    """
    whole = settings.crop_edges == "pixels"
    unit = side if whole else 1
    length = settings.crop_ratio * unit
    length = float(int(length)) if whole else length
    margin = length * settings.crop_margin
    margin = float(int(margin)) if whole else margin
    low = (points * unit - length + margin).clamp(0, unit - length).amax(1)
    high = (points * unit - margin).clamp(0, unit - length).amin(1)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    if whole:
        low, high = low.floor(), high.floor()
        offset = low + (random * (high - low + 1)).floor()
    else:
        offset = low + random * (high - low)
    return torch.cat([offset, torch.full_like(offset[:, :1], length)], dim=1) / unit


def choose_crops(points: Tensor, boxes: Tensor, priority: Tensor, margin: float) -> Tensor:
    """Chooses for each prompt a crop that keeps its points off the border.

    A crop suits a point by the point's distance from the crop's border, of which no more than ``margin`` counts. The
    most suitable is taken, and among equals the one of the highest priority. So a point near the image's border gets
    a crop that shows as much of its surroundings as any does.

    Args:
        points: (R, T, 2) of the image; with several the least suited one counts.
        boxes: (P, 3), the image's pool.
        priority: (R, P) in [0, 1); minus infinity bars a crop.
        margin: fraction of the crop's side.

    Returns:
        (R,) int64 in [0, P).
    """
    inside = into_crop(points[:, None], boxes[None, :, None])
    room = torch.minimum(inside, 1 - inside).amin((-2, -1)).clamp(-1.0, margin)
    return ((room * 1000).round() + priority).argmax(-1)  # a thousandth of the side makes no difference


CropSampler = PoolCropSampler | RandomCropSampler
