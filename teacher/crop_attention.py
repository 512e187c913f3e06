"""Attention of prompts to crops of an image.

Either with the prompt's influence on the features, as in the paper ("conditioned"), or without it ("frozen").
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from teacher.attention import read_tokens, split_heads
from teacher.crop_sampling import CropBatch, CropSampler, PoolCropSampler, RandomCropSampler
from teacher.feature_cache import FeatureCache, KeyedImage


class ConditionedCropAttention:
    """The method of the paper: every prompt runs through the UNet and changes the features that it attends to.

    Args:
        features: of images.
        image: that is attended to.
        timestep: diffusion time.
    """

    def __init__(self, features: FeatureCache, image: KeyedImage, timestep: int) -> None:
        self.features, self.image, self.timestep = features, image, timestep

    def sampler(self, names: Sequence[tuple], draws: int, replace: bool) -> CropSampler:
        """Returns what draws crops for prompts of these names, at most ``draws`` times."""
        return _sampler(self.features, self.image, names, draws, replace)

    def attend(self, prompts: Tensor, crops: CropBatch, draw: int, tokens: int = 1) -> list[Tensor]:
        """Returns the attention maps of R prompts.

        Args:
            prompts: (R, L, D).
            crops: one for each prompt.
            draw: number of the noise.
            tokens: T, how many tokens after the start are read.

        Returns:
            One (R, T, h, w) in [0, 1] a layer, differentiable with respect to ``prompts``.
        """
        unet, upper = self.features.model.unet, self.features.settings.heads == "upper"
        latents, row_of = self._noisy_latents(crops, draw)
        recorded = unet.record(unet.prefix(latents, self.timestep), row_of, prompts)
        scales = [layer.attention.scale for layer in unet.layers]
        return [read_tokens(r.query, r.key, s, tokens, upper) for r, s in zip(recorded, scales, strict=True)]

    def queries_at(self, number: int, names: Sequence[tuple], prompts: Tensor) -> list[Tensor]:
        """Returns one (R, heads, h * w, d) a layer: the queries of R prompts at crop ``number``, with the first noise."""
        unet = self.features.model.unet
        crops = self.sampler(names, 1, replace=False).numbered(number)
        latents, row_of = self._noisy_latents(crops, 0)
        return [r.query for r in unet.record(unet.prefix(latents, self.timestep), row_of, prompts)]

    def prefetch(self, noisy_crops: Iterable[tuple[int, int]]) -> None:
        """Does nothing: queries depend on the prompt."""

    def _noisy_latents(self, crops: CropBatch, draw: int) -> tuple[Tensor, Tensor]:
        """Returns C noisy latents, and (R,) which of them each prompt is shown."""
        settings = self.features.settings
        draw = draw % settings.noise_draws if settings.noise_draws else draw
        if crops.crop_of is None:
            return self._fresh_latents(crops, draw)
        latents = self.features.noisy_latents(self.image, [(draw, n) for n in crops.candidates], self.timestep)
        row_of = crops.crop_of - crops.candidates[0]
        if len(row_of) >= len(latents):
            return latents, row_of
        return latents[row_of], torch.arange(len(row_of), device=row_of.device)

    def _fresh_latents(self, crops: CropBatch, draw: int) -> tuple[Tensor, Tensor]:
        """Encodes crops that are in no pool; each prompt has noise of its own."""
        boxes, row_of = crops.boxes.unique(dim=0, return_inverse=True)
        latents = self.features.encode(self.image, boxes)[row_of]
        shape = latents.shape[1:]
        noise = {n: self.features.noise(shape, self.image.key, "noise", n, draw) for n in dict.fromkeys(crops.names)}
        drawn = torch.stack([noise[name] for name in crops.names]).to(latents)
        noisy = self.features.model.pipeline.add_noise(latents, drawn, self.timestep)
        return noisy, torch.arange(len(latents), device=latents.device)


class FrozenCropAttention:
    """A cheaper method: the UNet runs once per noisy crop with a prompt without content, and its queries are kept.

    A prompt then acts through the keys of the layers that are read only, so that no step of the optimisation runs the
    UNet. The maps differ from the paper's, because there the prompt also acts on the features.

    Args: see :class:`ConditionedCropAttention`; crops are those of the pool.
    """

    def __init__(self, features: FeatureCache, image: KeyedImage, timestep: int) -> None:
        self.features, self.image, self.timestep = features, image, timestep
        self.layers = [layer.attention for layer in features.model.unet.layers]
        self._of_draw: dict[int, tuple[dict[int, int], Tensor, list[Tensor]]] = {}

    def sampler(self, names: Sequence[tuple], draws: int, replace: bool) -> CropSampler:
        """See :meth:`ConditionedCropAttention.sampler`."""
        return _sampler(self.features, self.image, names, draws, replace)

    def attend(self, prompts: Tensor, crops: CropBatch, draw: int, tokens: int = 1) -> list[Tensor]:
        """See :meth:`ConditionedCropAttention.attend`."""
        assert crops.crop_of is not None
        row_of, queries = self._queries(draw % self.features.draws, crops.candidates)
        rows, upper = row_of[crops.crop_of], self.features.settings.heads == "upper"
        maps = []
        for layer, query in zip(self.layers, queries, strict=True):
            key = split_heads(layer.to_k(prompts.to(layer.to_k.weight.dtype)), layer.heads)
            maps.append(read_tokens(query[rows], key, layer.scale, tokens, upper))
        return maps

    def queries_at(self, number: int, names: Sequence[tuple], prompts: Tensor) -> list[Tensor]:
        """See :meth:`ConditionedCropAttention.queries_at`; the same for all prompts."""
        queries = self.features.queries(self.image, [(0, number)], self.timestep)
        return [query.expand(len(prompts), -1, -1, -1) for query in queries]

    def prefetch(self, noisy_crops: Iterable[tuple[int, int]]) -> None:
        """Computes the queries of (number of the noise, number of the crop) together, beforehand."""
        known = dict.fromkeys((draw % self.features.draws, number) for draw, number in noisy_crops)
        queries = self.features.queries(self.image, list(known), self.timestep)
        for draw in dict.fromkeys(draw for draw, _ in known):
            rows = [row for row, noisy_crop in enumerate(known) if noisy_crop[0] == draw]
            self._keep(draw, [list(known)[row][1] for row in rows], [query[rows] for query in queries])

    def _queries(self, draw: int, candidates: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Returns (P,), the row of each crop of the pool, and one (rows, heads, h * w, d) a layer."""
        held = self._of_draw[draw][0] if draw in self._of_draw else {}
        if not all(number in held for number in candidates):
            crops = sorted({*held, *candidates})
            noisy_crops = [(draw, number) for number in crops]
            self._keep(draw, crops, self.features.queries(self.image, noisy_crops, self.timestep))
        return self._of_draw[draw][1:]

    def _keep(self, draw: int, crops: Sequence[int], queries: list[Tensor]) -> None:
        row_of = {number: row for row, number in enumerate(crops)}
        rows = [row_of.get(number, 0) for number in range(self.features.settings.crop_pool + 1)]
        self._of_draw[draw] = row_of, torch.tensor(rows, device=self.features.model.device), queries


CropAttention = ConditionedCropAttention | FrozenCropAttention


def crop_attention(features: FeatureCache, image: KeyedImage, timestep: int) -> CropAttention:
    """Returns attention to ``image`` at a diffusion time, with or without the prompt's influence as the settings say."""
    kind = ConditionedCropAttention if features.settings.queries == "conditioned" else FrozenCropAttention
    return kind(features, image, timestep)


def _sampler(
    features: FeatureCache, image: KeyedImage, names: Sequence[tuple], draws: int, replace: bool
) -> CropSampler:
    settings, model = features.settings, features.model
    if settings.crop_source == "fresh":
        return RandomCropSampler(model.pipeline.image_size, names, settings, model.device, draws)
    return PoolCropSampler(features.pool(image), names, settings, draws if replace else None)
