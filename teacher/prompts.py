"""The prompts of source points: made once, kept, and used for every target."""

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.core.readout import argmax
from teacher.adaptive_batch import AdaptiveBatch
from teacher.crop_attention import ConditionedCropAttention, CropAttention
from teacher.crop_sampling import WHOLE
from teacher.feature_cache import FeatureCache
from teacher.initialization import random_starts, token_for
from teacher.localization import localize
from teacher.lru_cache import LRUCache
from teacher.optimization import optimise_prompts
from teacher.settings import Settings

Name = tuple[str, float, float]


class Prompts(NamedTuple):
    """The prompts of N points.

    Attributes:
        embedding: (N, E, L, D).
        token: (N,) int64, which of the tokens after the start stands for the point, from 0.
    """

    embedding: Tensor
    token: Tensor


class PromptMaker:
    """Optimises prompts, and keeps those that it made last.

    Args:
        scenes: the images as prompts see them.
        settings: of the method.
        chunks: how many prompts are optimised together.
        kept: how many points' prompts are kept.
    """

    def __init__(self, scenes: FeatureCache, settings: Settings, chunks: AdaptiveBatch, kept: int) -> None:
        self.scenes, self.settings, self.chunks = scenes, settings, chunks
        self.kept: MutableMapping[Any, tuple[Tensor, int]] = LRUCache(kept)

    def prompts_for(self, image: Tensor, key: str, points: Tensor) -> Prompts:
        """Returns the prompts of points (N, 2), x, y in fractions of the sides of ``image`` (3, H, W), named ``key``."""
        names = [(key, round(x, 4), round(y, 4)) for x, y in points.tolist()]
        known = {name: self.kept[name] for name in names if name in self.kept}
        missing = [row for row, name in enumerate(names) if name not in known]
        for group in _groups(missing, self.settings.points_per_prompt):
            known |= self._optimise(
                image, key, points[torch.tensor(group)], [[names[row] for row in rows] for rows in group]
            )
        for name, prompt in known.items():
            self.kept[name] = prompt
        found = [known[name] for name in names]
        return Prompts(
            torch.stack([embedding.to(self.scenes.device) for embedding, _ in found]),
            torch.tensor([token for _, token in found]),
        )

    def _optimise(
        self, image: Tensor, key: str, points: Tensor, names: list[list[Name]]
    ) -> dict[Name, tuple[Tensor, int]]:
        """Makes the prompts of G groups of T points each.

        Args:
            image: (3, H, W).
            key: its name.
            points: (G, T, 2).
            names: of the points.
        """
        copies, settings = self.settings.embeddings, self.settings
        views, points = self.scenes.views(image, key, settings.timestep), points.to(self.scenes.device)
        starts = random_starts(points[:, 0], key, self.scenes.prompt_shape, settings).flatten(0, 1)
        targets = points.repeat_interleave(copies, 0)
        rows: list[tuple] = [(*group[0], copy) for group in names for copy in range(copies)]

        def make(chunk: slice) -> Tensor:
            start, wanted = starts[chunk], targets[chunk]
            if settings.start == "query":
                start = self._start_at(views, start, wanted, rows[chunk])
            made = optimise_prompts(views, wanted, start, rows[chunk], settings, self.scenes.map_side)
            return self._compete(image, key, made, wanted, rows[chunk]) if settings.sides == "compete" else made

        prompts = torch.cat(self.chunks.run(make, len(rows))).unflatten(0, (len(names), copies))
        return {name: (prompts[g], t) for g, group in enumerate(names) for t, name in enumerate(group)}

    @torch.no_grad()
    def _start_at(self, views: CropAttention, starts: Tensor, points: Tensor, names: list[tuple]) -> Tensor:
        """Puts tokens that are solved for the points' features in place of random ones."""
        layers = self.scenes.unet.layers
        if isinstance(views, ConditionedCropAttention):
            aim = views.looks([("start", name) for name in names], once=True).numbered(WHOLE)
            latents, row_of = views.crops.noisy(aim, 0)
            prefix = self.scenes.unet.prefix(latents, views.crops.timestep)
            queries = [recording.query for recording in self.scenes.unet.record(prefix, row_of, starts)]
        else:
            queries = [query[0, WHOLE].expand(len(starts), -1, -1, -1) for query in views.queries]
        tokens = token_for(queries, points, layers)
        return torch.cat([starts[:, :1], tokens, starts[:, 1 + tokens.shape[1] :]], dim=1)

    def _compete(self, image: Tensor, key: str, prompts: Tensor, points: Tensor, names: list[tuple]) -> Tensor:
        """Optimises on, with a second token for the place that the first one takes in the mirrored image.

        A symmetric object's left looks in the mirror as its right did. Where the prompt lights up in the mirrored
        image is therefore where it would be mistaken. Prompts that light up at the point itself are left as they are.
        """
        settings = self.settings
        views = self.scenes.views(image, key, settings.timestep, mirrored=True)
        token = torch.zeros(len(prompts), dtype=torch.int64, device=prompts.device)
        maps = localize(views, prompts, token, settings, self.scenes.map_side).mean(1, keepdim=True)
        twins = argmax(maps, (1, 1))
        twins = torch.cat([1 - twins[..., :1], twins[..., 1:]], dim=-1)
        apart = ((twins - points).norm(dim=-1)[:, 0] > 2 * settings.sigma).nonzero()[:, 0].tolist()
        if apart:
            both = torch.cat([points, twins], dim=1)[apart]
            views = self.scenes.views(image, key, settings.timestep)
            again = [("competing", *names[row]) for row in apart]
            prompts[apart] = optimise_prompts(views, both, prompts[apart], again, settings, self.scenes.map_side)
        return prompts


def _groups(rows: Sequence[int], size: int) -> list[list[list[int]]]:
    """Shares ``rows`` out into groups of at most ``size`` and nearly equal number; groups of one number together."""
    if not rows:
        return []
    count = -(-len(rows) // size)
    groups = [list(rows[i * len(rows) // count : (i + 1) * len(rows) // count]) for i in range(count)]
    return [[g for g in groups if len(g) == number] for number in sorted({len(g) for g in groups})]
