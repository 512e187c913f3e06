"""Which crop of an image each prompt is shown next.

Either one of a fixed pool, which is encoded once, or a new one. The pool holds, in this order, the whole image, the
four corners, and random places. Boxes and points are in fractions, see :mod:`teacher.crops`. All random numbers of a
prompt are drawn beforehand, so that a step draws nothing and copies nothing between host and device.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from distill.core.precision import in_double
from teacher.crops import into_crop
from teacher.settings import Settings

WHOLE = 0
CORNERS = (1, 2, 3, 4)


class CropBatch(NamedTuple):
    """The crops that R prompts are shown.

    Attributes:
        boxes: (R, 3).
        crop_of: (R,) int64, their numbers in the pool; None when there is no pool.
        candidates: the numbers that ``crop_of`` may hold, known without a look at it.
        names: of the prompts, which decide their noise when there is no pool; empty when there is one.
    """

    boxes: Tensor
    crop_of: Tensor | None
    candidates: Sequence[int]
    names: Sequence[Hashable]


class CropPlan(NamedTuple):
    """The crops that R prompts are shown at K draws, all known beforehand.

    Attributes:
        boxes: (K, R, 3).
        crop_of: (K, R) int64, their numbers in the pool; None when there is no pool.
        candidates: for each draw, the numbers that ``crop_of`` may hold.
        names: of the prompts, see :class:`CropBatch`.
    """

    boxes: Tensor
    crop_of: Tensor | None
    candidates: Sequence[Sequence[int]]
    names: Sequence[Hashable]

    @classmethod
    def of(cls, batches: Sequence[CropBatch]) -> Self:
        """Returns the plan of ``batches``, one a draw."""
        crop_of = [batch.crop_of for batch in batches if batch.crop_of is not None]
        boxes = torch.stack([batch.boxes for batch in batches])
        numbers = torch.stack(crop_of) if crop_of else None
        return cls(boxes, numbers, [batch.candidates for batch in batches], batches[0].names)

    def part(self, draws: slice) -> Self:
        """Returns the plan of some draws."""
        crop_of = None if self.crop_of is None else self.crop_of[draws]
        return type(self)(self.boxes[draws], crop_of, self.candidates[draws], self.names)


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
    """Draws crops of a pool for R prompts.

    Args:
        boxes: (P, 3), the pool; or (R, P, 3), that of each prompt's image.
        names: of the R prompts; each prompt's crops are drawn from its name, so that the other prompts do not matter.
        settings: of the method.
        draws: how many draws :meth:`plan` makes. None for a sampler without replacement: a prompt is shown no crop
            twice, in an order of preference drawn once. Otherwise the whole image is left out.
    """

    def __init__(self, boxes: Tensor, names: Sequence[tuple], settings: Settings, draws: int | None) -> None:
        self.boxes, self.margin = boxes.expand(len(names), -1, -1), settings.crop_margin
        self._replace, self._rows = draws is not None, torch.arange(len(names), device=boxes.device)
        count = boxes.shape[-2]
        self._priority = _uniform(names, settings.seed, (draws or 1, count)).to(boxes).transpose(0, 1)
        self._excluded = torch.zeros(len(names), count, dtype=torch.bool, device=boxes.device)
        self._excluded[:, WHOLE] = self._replace
        self._candidates = range(WHOLE + self._replace, count)

    def plan(self, points: Tensor) -> CropPlan:
        """Returns the crops of all draws, which show points (R, T, 2) off their border."""
        assert self._replace, "without replacement a draw depends on those before"
        priority = self._priority.masked_fill(self._excluded, -torch.inf)
        crop_of = choose_crops(points, self.boxes, priority, self.margin)
        return CropPlan(self.boxes[self._rows, crop_of], crop_of, [self._candidates] * len(crop_of), ())

    def numbered(self, number: int) -> CropBatch:
        """Returns crop ``number`` of the pool for all prompts."""
        return self._batch(torch.full_like(self._rows, number), (number,))

    def at(self, points: Tensor) -> CropBatch:
        """Returns crops that show points (R, T, 2) off their border, none that a prompt was shown before."""
        priority = self._priority[0].masked_fill(self._excluded, -torch.inf)
        return self._batch(choose_crops(points, self.boxes, priority, self.margin), self._candidates)

    def _batch(self, crop_of: Tensor, candidates: Sequence[int]) -> CropBatch:
        if not self._replace:
            self._excluded.scatter_(1, crop_of[:, None], True)
        return CropBatch(self.boxes[self._rows, crop_of], crop_of, candidates, ())


class RandomCropSampler:
    """Draws new crops for R prompts, as released.

    A crop is placed at random such that the point keeps ``crop_margin`` off its border, as far as the crop then still
    lies inside the image.

    Args:
        side: of the image, px.
        names: see :class:`PoolCropSampler`.
        settings: of the method.
        device: of the boxes.
        draws: how often crops will be drawn.
    """

    def __init__(self, side: int, names: Sequence[tuple], settings: Settings, device: torch.device, draws: int) -> None:
        self.side, self.names, self.settings, self.device = side, names, settings, device
        self._random = in_double(_uniform(names, settings.seed, (draws, 2)).to(device))
        self._calls = 0

    def numbered(self, number: int) -> CropBatch:
        """Returns the whole image (0) or one of its corners (1 to 4) for all prompts."""
        if number == WHOLE:
            whole = torch.tensor([[0.0, 0.0, 1.0]], device=self.device).repeat(len(self.names), 1)
            return CropBatch(whole, None, (), self.names)
        corner = torch.tensor([[[(number - 1) % 2, (number - 1) // 2]]], dtype=torch.float32, device=self.device)
        return self.at(corner.repeat(len(self.names), 1, 1))

    def at(self, points: Tensor) -> CropBatch:
        """Returns new crops that show points (R, T, 2) off their border."""
        random = self._random[:, self._calls]
        self._calls += 1
        return CropBatch(fresh_boxes(points.to(random), random, self.side, self.settings).float(), None, (), self.names)

    def plan(self, points: Tensor) -> CropPlan:
        """See :meth:`PoolCropSampler.plan`."""
        random = self._random.transpose(0, 1)
        boxes = fresh_boxes(points.to(random), random, self.side, self.settings).float()
        return CropPlan(boxes, None, [()] * len(boxes), self.names)


CropSampler = PoolCropSampler | RandomCropSampler


def fresh_boxes(points: Tensor, random: Tensor, side: int, settings: Settings) -> Tensor:
    """Places crops around points.

    Args:
        points: (R, T, 2); with several the crop suits them all as far as it can.
        random: (..., R, 2) in [0, 1), where in the range of places that suit.
        side: of the image, px, to whole ones of which everything is rounded down if the settings say so.
        settings: ratio, margin, edges.

    Returns:
        (..., R, 3).
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
    return torch.cat([offset, torch.full_like(offset[..., :1], length)], dim=-1) / unit


def choose_crops(points: Tensor, boxes: Tensor, priority: Tensor, margin: float) -> Tensor:
    """Chooses for each prompt a crop that keeps its points off the border.

    A crop suits a point by the point's distance from the crop's border, of which no more than ``margin`` counts. The
    most suitable is taken, and among equals the one of the highest priority. So a point near the image's border gets
    a crop that shows as much of its surroundings as any does.

    Args:
        points: (R, T, 2) of the image; with several the least suited one counts.
        boxes: (P, 3), the image's pool; or (R, P, 3), that of each prompt's image.
        priority: (..., R, P) in [0, 1); minus infinity excludes a crop.
        margin: fraction of the crop's side.

    Returns:
        (..., R) int64 in [0, P).
    """
    inside = into_crop(points[:, None], boxes[..., :, None, :])
    room = torch.minimum(inside, 1 - inside).amin((-2, -1)).clamp(-1.0, margin)
    return ((room * 1000).round() + priority).argmax(-1)  # a thousandth of the side makes no difference


def _uniform(names: Sequence[tuple], seed: int, shape: tuple[int, int]) -> Tensor:
    """Returns (R, *shape) numbers in [0, 1), each row drawn from its name; drawn once for names that repeat."""
    drawn = {name: torch.rand(shape, generator=generator(seed, *name)) for name in dict.fromkeys(names)}
    return torch.stack([drawn[name] for name in names])
