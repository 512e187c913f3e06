"""Attention of prompts to crops of images.

Either with the prompt's influence on the features, as in the paper ("conditioned"), or without it ("frozen"). Prompts of
several images run together. What their crops show is computed and laid out in tables before the first step; a step
then reads rows of these tables by numbers that lie on the device, so that it copies nothing between host and device.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from teacher.attention import Layer, read_tokens, split_heads
from teacher.crop_sampling import CropPlan, CropSampler, PoolCropSampler, RandomCropSampler
from teacher.feature_cache import FeatureCache, KeyedImage, NoisyCrop
from teacher.settings import Settings
from teacher.unet import PromptedUNet

DRAWS_AT_ONCE = 16
"""Draws that are laid out together where each has noise, or crops, of its own; it bounds their memory."""


class CropFeatures(ABC):
    """What R prompts are shown at K draws, ready to be attended to."""

    @abstractmethod
    def attend(self, prompts: Tensor, draw: Tensor, rows: Tensor | None = None, tokens: int = 1) -> list[Tensor]:
        """Returns attention maps.

        Args:
            prompts: (A, L, D).
            draw: (1,) int64 in [0, K), on the device.
            rows: (A,) int64 in [0, R), which prompts these are; None for all.
            tokens: T, how many tokens after the start are read.

        Returns:
            One (A, T, h, w) in [0, 1] a layer, differentiable with respect to ``prompts``.
        """


class FrozenCropFeatures(CropFeatures):
    """Queries of crops that no prompt has changed.

    Args:
        layers: that are read.
        queries: one (C, heads, h * w, d) a layer.
        row_of: (K, R) int64 in [0, C), which crop each prompt is shown.
        settings: of the method.
    """

    def __init__(self, layers: list[Layer], queries: list[Tensor], row_of: Tensor, settings: Settings) -> None:
        self.layers, self.queries, self.row_of, self.upper = layers, queries, row_of, settings.heads == "upper"

    def attend(self, prompts: Tensor, draw: Tensor, rows: Tensor | None = None, tokens: int = 1) -> list[Tensor]:
        """See :meth:`CropFeatures.attend`."""
        chosen, maps = at_draw(self.row_of, draw, rows), []
        for (_, _, layer), queries in zip(self.layers, self.queries, strict=True):
            key = split_heads(layer.to_k(prompts.to(layer.to_k.weight.dtype)), layer.heads)
            maps.append(read_tokens(queries[chosen], key, layer.scale, tokens, self.upper))
        return maps


class ConditionedCropFeatures(CropFeatures):
    """Noisy latents of crops, which run through the UNet together with the prompts.

    Args:
        unet: whose layers are recorded.
        latents: (C, channels, h, w).
        row_of: (K, R) int64 in [0, C), which crop each prompt is shown.
        shared: where a draw has no more crops than prompts, (K, S) int64 in [0, C), these crops, and (K, R) int64 in
            [0, S), which of them each prompt is shown; None where every prompt has its own.
        timestep: diffusion time.
        settings: of the method.
    """

    def __init__(
        self,
        unet: PromptedUNet,
        latents: Tensor,
        row_of: Tensor,
        shared: tuple[Tensor, Tensor] | None,
        timestep: int,
        settings: Settings,
    ) -> None:
        self.unet, self.latents, self.row_of, self.shared = unet, latents, row_of, shared
        self.timestep, self.upper = timestep, settings.heads == "upper"

    def attend(self, prompts: Tensor, draw: Tensor, rows: Tensor | None = None, tokens: int = 1) -> list[Tensor]:
        """See :meth:`CropFeatures.attend`."""
        latents, crop_of = self.at(draw, rows)
        recorded = self.unet.record(self.unet.prefix(latents, self.timestep), crop_of, prompts)
        scales = [layer.attention.scale for layer in self.unet.layers]
        return [read_tokens(r.query, r.key, s, tokens, self.upper) for r, s in zip(recorded, scales, strict=True)]

    def at(self, draw: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns noisy latents (S, channels, h, w), and (A,) which of them each prompt is shown."""
        if self.shared is None or (rows is not None and len(rows) < self.shared[0].shape[1]):
            latents = self.latents[at_draw(self.row_of, draw, rows)]
            return latents, torch.arange(len(latents), device=latents.device)
        shared, shared_of = self.shared
        return self.latents[at_draw(shared, draw)], at_draw(shared_of, draw, rows)


class CropAttention:
    """Attention to crops of R images, one for each prompt.

    Args:
        features: of images.
        images: of the R prompts.
        timestep: diffusion time.
    """

    def __init__(self, features: FeatureCache, images: Sequence[KeyedImage], timestep: int) -> None:
        self.features, self.settings, self.timestep, self.rows = features, features.settings, timestep, list(images)
        self.images = list({image.key: image for image in images}.values())
        numbers = {image.key: number for number, image in enumerate(self.images)}
        self.image_of = torch.tensor([numbers[image.key] for image in images], device=features.model.device)

    def sampler(self, names: Sequence[tuple], draws: int, replace: bool) -> CropSampler:
        """Returns what draws crops for prompts of these names, at most ``draws`` times."""
        settings, model = self.settings, self.features.model
        if settings.crop_source == "fresh":
            return RandomCropSampler(model.pipeline.image_size, names, settings, model.device, draws)
        pools = torch.stack([self.features.pool(image) for image in self.images])
        return PoolCropSampler(pools[self.image_of], names, settings, draws if replace else None)

    def parts(self, steps: int, per_step: int) -> list[slice]:
        """Returns the draws, ``per_step`` of each of ``steps`` steps, that are to be prepared together, in order."""
        lasting = self.settings.queries == "frozen" or self.settings.noise_draws is not None
        many = steps if lasting and self.settings.crop_source == "pool" else max(1, DRAWS_AT_ONCE // per_step)
        return [slice(first * per_step, min(first + many, steps) * per_step) for first in range(0, steps, many)]

    def prepare(self, plan: CropPlan, first: int = 0) -> CropFeatures:
        """Computes what the crops of ``plan`` show.

        Args:
            plan: K draws for R prompts.
            first: number of its first draw, which decides the noise.
        """
        if plan.crop_of is None:
            return self._prepare_fresh(plan, first)
        draws = self._noises(first, len(plan.boxes))
        cells = dict.fromkeys((d, n) for d, numbers in zip(draws, plan.candidates, strict=True) for n in numbers)
        crops = [NoisyCrop(image, *cell) for image in self.images for cell in cells]
        place_of = {cell: place for place, cell in enumerate(cells)}
        width = self.settings.crop_pool + 1
        table = torch.tensor([[place_of.get((d, n), 0) for n in range(width)] for d in draws])
        places = table.to(plan.crop_of.device).gather(1, plan.crop_of)
        row_of = self.image_of * len(cells) + places
        if self.settings.queries == "frozen":
            queries = self.features.queries(crops, self.timestep)
            return FrozenCropFeatures(self.features.model.unet.layers, queries, row_of, self.settings)
        latents = self.features.noisy_latents(crops, self.timestep)
        shared = self._shared(plan, table, len(cells))
        return ConditionedCropFeatures(self.features.model.unet, latents, row_of, shared, self.timestep, self.settings)

    def _noises(self, first: int, count: int) -> list[int]:
        """Returns the numbers of the noise of some draws."""
        held = self.features.draws if self.settings.queries == "frozen" else self.settings.noise_draws
        return [draw % held if held else draw for draw in range(first, first + count)]

    def _shared(self, plan: CropPlan, table: Tensor, cells: int) -> tuple[Tensor, Tensor] | None:
        """Returns the crops of each draw, and which of them prompts are shown, where there are fewer than prompts."""
        numbers = plan.candidates[0]
        if any(others != numbers for others in plan.candidates) or len(self.images) * len(numbers) > len(self.rows):
            return None
        assert plan.crop_of is not None
        places = table[:, list(numbers)].to(self.image_of.device)
        images = torch.arange(len(self.images), device=places.device)[:, None] * cells
        shared = (images + places[:, None]).flatten(1)
        return shared, self.image_of * len(numbers) + plan.crop_of - numbers[0]

    def _prepare_fresh(self, plan: CropPlan, first: int) -> ConditionedCropFeatures:
        """Encodes crops that are in no pool; each prompt has noise of its own."""
        draws, count = plan.boxes.shape[:2]
        keyed = torch.cat([self.image_of.expand(draws, -1)[..., None].to(plan.boxes), plan.boxes], dim=-1).flatten(0, 1)
        distinct, row_of = keyed.unique(dim=0, return_inverse=True)  # in the order of the images
        encoded = self.features.encode(
            [self.images[int(number)] for number in distinct[:, 0].tolist()], distinct[:, 1:]
        )
        prompts = [(image.key, name) for image, name in zip(self.rows, plan.names, strict=True)]
        seeds = [(key, "noise", name, noise) for noise in self._noises(first, draws) for key, name in prompts]
        drawn = {seed: self.features.noise(encoded.shape[1:], *seed) for seed in dict.fromkeys(seeds)}
        noise = torch.stack([drawn[seed] for seed in seeds])
        noisy = self.features.model.pipeline.add_noise(encoded[row_of], noise.to(encoded), self.timestep)
        rows = torch.arange(draws * count, device=noisy.device).view(draws, count)
        return ConditionedCropFeatures(self.features.model.unet, noisy, rows, None, self.timestep, self.settings)

    def queries_at(self, number: int, names: Sequence[tuple], prompts: Tensor) -> list[Tensor]:
        """Returns one (R, heads, h * w, d) a layer: the queries of R prompts at crop ``number``, with the first noise."""
        plan = CropPlan.of([self.sampler(names, 1, replace=False).numbered(number)])
        shown, draw = self.prepare(plan), torch.zeros(1, dtype=torch.int64, device=prompts.device)
        if isinstance(shown, FrozenCropFeatures):
            return [queries[at_draw(shown.row_of, draw)] for queries in shown.queries]
        assert isinstance(shown, ConditionedCropFeatures)
        latents, crop_of = shown.at(draw)
        unet = self.features.model.unet
        return [r.query for r in unet.record(unet.prefix(latents, self.timestep), crop_of, prompts)]


def at_draw(table: Tensor, draw: Tensor, rows: Tensor | None = None) -> Tensor:
    """Returns the entry of ``table`` (K, R, ...) for ``draw`` (1,), of some or all rows, without a look at ``draw``."""
    entry = table.index_select(0, draw)[0]
    return entry if rows is None else entry[rows]
