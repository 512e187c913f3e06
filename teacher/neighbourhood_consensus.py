"""What the surroundings of a query point say about its match.

A prompt sees one point at a time, and a symmetric object has two places for it. The cells around the point are matched as
well, by the queries with which the layers that are read look at the prompt: they are there anyway, and what two images
share shows in them. Cells next to each other have matches next to each other, so each cell votes for the offset that its
own match has; see :mod:`distill.core.consensus`. The target is looked at as it is and in the mirror, and the look that the
source agrees with better is taken, so that a dog that faces left meets one that faces right.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.consensus import mutual_probability, neighbourhood_consensus
from distill.core.geometry import flip_points, sample_at
from teacher.feature_cache import FeatureCache
from teacher.lru_cache import LRUCache

CELLS = 16
"""Cells a side at which images are compared at most: votes take the fourth power of it."""
TEMPERATURE = 0.05
"""Divides the cosines of cells."""


class ConsensusMaps(NamedTuple):
    """What neighbours say of N points in a target image.

    Attributes:
        maps: (N, h, w), positive, over the target's cells as they are, in the mirror or not.
        mirrored: whether the mirror image agreed better.
    """

    maps: Tensor
    mirrored: bool


class NeighbourhoodConsensus:
    """Lets the cells around query points vote.

    Args:
        scenes: what describes the images.
        reach: standard deviation of a neighbour's weight by its distance, as a fraction of the side.
        mirror: whether the target is looked at in the mirror too.
        kept: how many images' descriptors are kept.
    """

    def __init__(self, scenes: FeatureCache, reach: float, mirror: bool, kept: int) -> None:
        self.scenes, self.reach, self.mirror = scenes, reach, mirror
        self._kept: LRUCache[Tensor] = LRUCache(2 * kept)

    @torch.no_grad()
    def vote(self, source: tuple[Tensor, str], target: tuple[Tensor, str], points: Tensor) -> ConsensusMaps:
        """Returns the votes for points (N, 2), in fractions of the source's sides.

        Args:
            source: image (3, H, W) in [0, 1] and its name.
            target: the same.
            points: (N, 2).
        """
        here = self._describe(*source, mirrored=False)
        looks = [self._votes(here, self._describe(*target, mirrored=way)) for way in (False, True)[: 1 + self.mirror]]
        mirrored = len(looks) == 2 and _agreement(looks[1]) > _agreement(looks[0])
        return ConsensusMaps(_at(looks[mirrored], points, mirrored), mirrored)

    @torch.no_grad()
    def vote_again(
        self, source: tuple[Tensor, str], target: tuple[Tensor, str], points: Tensor, mirrored: bool
    ) -> Tensor:
        """Returns (N, h, w), the votes of the same look with both images mirrored, over the target's cells as they are.

        A network that knows left from right says something else then, where it is not sure.

        Args:
            source: as for :meth:`vote`.
            target: the same.
            points: the same.
            mirrored: the look that was taken, see :class:`ConsensusMaps`.
        """
        here, there = self._describe(*source, mirrored=True), self._describe(*target, mirrored=not mirrored)
        return _at(self._votes(here, there), flip_points(points, (1, 1)), not mirrored)

    def _describe(self, image: Tensor, key: str, mirrored: bool) -> Tensor:
        name = (key, mirrored)
        if name not in self._kept:
            self._kept[name] = _cells(self.scenes.full_image_queries(image, key, mirrored))
        return self._kept[name]

    def _votes(self, here: Tensor, there: Tensor) -> Tensor:
        """Returns (h, w, h, w) for descriptors (C, h, w) of two images."""
        scores = torch.einsum("chw,cyx->hwyx", here, there)[None] / TEMPERATURE
        return neighbourhood_consensus(mutual_probability(scores), self.reach * here.shape[-1])[0]


def _at(votes: Tensor, points: Tensor, mirrored: bool) -> Tensor:
    """Returns (N, h, w): the votes (h, w, h, w) at points (N, 2), with the target turned back if it was mirrored."""
    maps = votes.flatten(2).permute(2, 0, 1)[None]
    of_points = sample_at(maps, points[None].to(maps), (1, 1))[0].unflatten(1, votes.shape[2:])
    return of_points.flip(-1) if mirrored else of_points


def _cells(queries: list[Tensor]) -> Tensor:
    """Returns descriptors of length 1, (C, h, w), made of the queries (C', h', w') of all layers.

    What all cells of an image share says nothing about any of them, and is taken off.
    """
    side = min(CELLS, max(query.shape[-1] for query in queries))
    alike = []
    for query in queries:
        centred = query - query.mean((1, 2), keepdim=True)
        pooled = F.interpolate(centred[None], (side, side), mode="area" if query.shape[-1] > side else "bilinear")[0]
        alike.append(F.normalize(pooled, dim=0))
    return F.normalize(torch.cat(alike), dim=0)


def _agreement(votes: Tensor) -> float:
    """How well two images agree: the mean over source cells of the best vote."""
    return float(votes.flatten(2).amax(-1).mean())
