"""The prompts of source points: optimised once, kept, and used for every target."""

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.memory import AdaptiveBatch, TensorCache
from teacher.source_image import SourceImage

Name = tuple[str, float, float]


class Prompts(NamedTuple):
    """The prompts of N points.

    Attributes:
        embedding: (N, E, L, D).
        token: (N,) int64, which of the tokens after the start stands for the point, from 0.
    """

    embedding: Tensor
    token: Tensor


class CachedPrompts:
    """Optimises prompts, and keeps them.

    Args:
        features: of images in the frozen model.
        batch: how many prompts are optimised together.
        cache: from the name of a point to its prompt and the number of its token.
    """

    def __init__(self, features: FeatureCache, batch: AdaptiveBatch, cache: TensorCache) -> None:
        self.features, self.batch = features, batch
        self.cache: MutableMapping[Any, tuple[Tensor, int]] = cache

    def at(self, image: KeyedImage, points: Tensor) -> Prompts:
        """Returns the prompts of points (N, 2), x, y in fractions of the sides of ``image``."""
        names = [(image.key, round(x, 4), round(y, 4)) for x, y in points.tolist()]
        known = {name: self.cache[name] for name in names if name in self.cache}
        missing = [row for row, name in enumerate(names) if name not in known]
        if missing:
            source = SourceImage(self.features, image, self.batch)
            for groups in grouped(missing, self.features.settings.points_per_prompt):
                known |= self._optimise(source, points[torch.tensor(groups)], [[names[r] for r in g] for g in groups])
        for name, prompt in known.items():
            self.cache[name] = prompt
        found, device = [known[name] for name in names], self.features.model.device
        embedding = torch.stack([embedding.to(device) for embedding, _ in found])
        return Prompts(embedding, torch.tensor([token for _, token in found], device=device))

    def _optimise(self, source: SourceImage, points: Tensor, names: list[list[Name]]) -> dict[Name, tuple[Tensor, int]]:
        """Optimises the prompts of G groups of T points (G, T, 2) each; ``names`` are those of the points."""
        prompts = source.optimise(points, [group[0] for group in names])
        return {name: (prompts[g].clone(), t) for g, group in enumerate(names) for t, name in enumerate(group)}


def grouped(rows: Sequence[int], size: int) -> list[list[list[int]]]:
    """Shares ``rows`` out into groups of at most ``size`` and nearly equal number; groups of one number together."""
    if not rows:
        return []
    count = -(-len(rows) // size)
    groups = [list(rows[i * len(rows) // count : (i + 1) * len(rows) // count]) for i in range(count)]
    return [[g for g in groups if len(g) == number] for number in sorted({len(g) for g in groups})]
