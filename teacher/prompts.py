"""The prompts of source points: optimised once, kept, and used for every target."""

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.core.errors import LabelError
from distill.core.tensor_cache import TensorCache
from teacher.adaptive_batch import AdaptiveBatch
from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.source_image import SourceImages

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
        """Returns the prompts of points (N, 2), x, y in fractions of the sides of ``image``; see :meth:`at_all`."""
        return self.at_all([(image, points)])[0]

    def at_all(self, queries: Sequence[tuple[KeyedImage, Tensor]]) -> list[Prompts]:
        """Returns the prompts of points (N, 2) of each image; those that are missing are optimised together.

        Raises:
            LabelError: when a kept prompt cannot be this teacher's.
        """
        names = [[(image.key, round(x, 4), round(y, 4)) for x, y in points.tolist()] for image, points in queries]
        known = {name: self._checked(self.cache[name]) for some in names for name in some if name in self.cache}
        groups: list[_Group] = []
        planned = set(known)
        for (image, points), some in zip(queries, names, strict=True):
            # Of equal points one: two tokens of a prompt would compete for the one place.
            missing = list({name: row for row, name in enumerate(some) if name not in planned}.values())
            planned.update(some)
            for same in grouped(missing, self.features.settings.points_per_prompt):
                groups += [_Group(image, points[rows], [some[row] for row in rows]) for rows in same]
        if groups:
            known |= self._optimise(groups)
        for name, prompt in known.items():
            self.cache[name] = prompt
        return [self._stacked([known[name] for name in some]) for some in names]

    def _checked(self, prompt: tuple[Tensor, int]) -> tuple[Tensor, int]:
        """Returns a kept prompt, which may come from a file.

        Raises:
            LabelError: when its shape or type is not that of this teacher's prompts, or it has no such token.
        """
        (embedding, token), settings = prompt, self.features.settings
        shape, tokens = (settings.embeddings, *self.features.model.prompt_shape), settings.points_per_prompt
        if embedding.shape != shape or embedding.dtype != torch.float32 or not 0 <= token < tokens:
            raise LabelError(
                f"Expected kept prompts of {shape} float32 with one of {tokens} tokens but got {tuple(embedding.shape)} "
                f"{str(embedding.dtype).removeprefix('torch.')} with token {token}; delete the folder prompt_cache of the labels."
            )
        return prompt

    def _stacked(self, found: Sequence[tuple[Tensor, int]]) -> Prompts:
        device = self.features.model.device
        embedding = torch.stack([embedding.to(device) for embedding, _ in found])
        return Prompts(embedding, torch.tensor([token for _, token in found], device=device))

    def _optimise(self, groups: Sequence["_Group"]) -> dict[Name, tuple[Tensor, int]]:
        """Optimises the prompts of groups of points, those of equally many points together."""
        found: dict[Name, tuple[Tensor, int]] = {}
        source = SourceImages(self.features, self.batch)
        for number in sorted({len(group.names) for group in groups}):
            same = sorted((group for group in groups if len(group.names) == number), key=lambda group: group.image.key)
            points = torch.stack([group.points for group in same])
            prompts = source.optimise([group.image for group in same], points, [group.names[0] for group in same])
            for group, prompt in zip(same, prompts, strict=True):
                found |= {name: (prompt.clone(), token) for token, name in enumerate(group.names)}
        return found


class _Group(NamedTuple):
    """Points (T, 2) of one image that share a prompt, and their names."""

    image: KeyedImage
    points: Tensor
    names: list[Name]


def grouped(rows: Sequence[int], size: int) -> list[list[list[int]]]:
    """Shares ``rows`` out into groups of at most ``size`` and nearly equal number; groups of one number together."""
    if not rows:
        return []
    count = -(-len(rows) // size)
    groups = [list(rows[i * len(rows) // count : (i + 1) * len(rows) // count]) for i in range(count)]
    return [[g for g in groups if len(g) == number] for number in sorted({len(g) for g in groups})]
