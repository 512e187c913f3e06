"""Features of images in the frozen model, computed at their first use and cached."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from teacher.crop_sampling import crop_boxes, generator
from teacher.crops import crop, crop_pixels
from teacher.frozen_model import FrozenModel
from teacher.memory import AdaptiveBatch, TensorCache
from teacher.settings import Settings

FROZEN_DRAWS = 4
"""Draws of noise for frozen queries where the settings do not say."""
CELLS = 16
"""Cells a side at most of the descriptors that neighbourhood consensus compares."""


class KeyedImage(NamedTuple):
    """An image and a name for its content.

    Attributes:
        pixels: (3, H, W) in [0, 1].
        key: decides, with the seed, all that is random about the image.
    """

    pixels: Tensor
    key: str

    def flipped(self) -> Self:
        """Returns the horizontally flipped image."""
        return type(self)(self.pixels.flip(-1), f"{self.key} mirrored")  # part of a seed: not to be renamed


class FeatureCache:
    """Computes latents of crops, queries of the recorded layers and descriptors, and keeps them.

    Args:
        model: the frozen Stable Diffusion.
        settings: of the method.
    """

    def __init__(self, model: FrozenModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.cache = TensorCache(settings.feature_cache_size)
        self._batch = AdaptiveBatch(settings.batch_size, (self.cache,))

    @property
    def draws(self) -> int:
        """Draws of noise for frozen queries."""
        return self.settings.noise_draws or FROZEN_DRAWS

    def pool(self, image: KeyedImage) -> Tensor:
        """Returns the boxes (P, 3) of the crops at which ``image`` is encoded."""
        settings, corners = self.settings, 4
        random = generator(settings.seed, image.key, "crops")
        boxes = crop_boxes(settings.crop_pool - corners, settings.crop_ratio, random)
        if settings.crop_edges == "pixels":
            side = self.model.pipeline.image_size
            boxes = (boxes.double() * side + 1e-9).floor().to(boxes) / side
        return boxes.to(self.model.device)

    def latents(self, image: KeyedImage, crops: Sequence[int]) -> Tensor:
        """Returns the latents (C, channels, h, w) of crops of the pool."""
        names = [("latents", image.key, number) for number in crops]
        found = {name: self.cache[name] for name in names if name in self.cache}
        missing = [number for number, name in zip(crops, names, strict=True) if name not in found]
        if missing:
            encoded = self.encode(image, self.pool(image)[missing])
            for number, latent in zip(missing, encoded, strict=True):
                name = ("latents", image.key, number)
                found[name] = self.cache[name] = latent.clone()
        return torch.stack([found[name] for name in names])

    def noisy_latents(self, image: KeyedImage, noisy_crops: Sequence[tuple[int, int]], timestep: int) -> Tensor:
        """Returns latents (len(noisy_crops), channels, h, w) of crops, diffused to ``timestep``.

        Args:
            image: of the crops.
            noisy_crops: number of the noise and number of the crop, of each.
            timestep: diffusion time.
        """
        latents = self.latents(image, [number for _, number in noisy_crops])
        shape = (self.settings.crop_pool + 1, *latents.shape[1:])
        noise = {draw: self.noise(shape, image.key, "noise", draw) for draw in dict.fromkeys(d for d, _ in noisy_crops)}
        chosen = torch.stack([noise[draw][number] for draw, number in noisy_crops])
        return self.model.pipeline.add_noise(latents, chosen.to(latents), timestep)

    def queries(self, image: KeyedImage, noisy_crops: Sequence[tuple[int, int]], timestep: int) -> list[Tensor]:
        """Returns the queries of noisy crops under a prompt without content.

        Args:
            image: of the crops.
            noisy_crops: number of the noise and number of the crop, of each.
            timestep: diffusion time.

        Returns:
            One (len(noisy_crops), heads, h * w, d) a layer.
        """
        names = [("queries", image.key, timestep, *noisy_crop) for noisy_crop in noisy_crops]
        found = {name: self.cache[name] for name in names if name in self.cache}
        missing = [noisy_crop for noisy_crop, name in zip(noisy_crops, names, strict=True) if name not in found]
        if missing:
            computed = self._frozen_queries(self.noisy_latents(image, missing, timestep), timestep)
            for row, noisy_crop in enumerate(missing):
                name = ("queries", image.key, timestep, *noisy_crop)
                found[name] = self.cache[name] = [of_layer[row].clone() for of_layer in computed]
        return [torch.stack(of_layer) for of_layer in zip(*(found[name] for name in names), strict=True)]

    def descriptors(self, image: KeyedImage) -> Tensor:
        """Returns descriptors of length 1, (C, h, w), made of the queries of all layers at the uncropped image.

        The mean over all cells, which distinguishes none of them, is subtracted.
        """
        name = ("descriptors", image.key)
        if name not in self.cache:
            descriptors = _descriptors(self.full_image_queries(image))
            self.cache[name] = descriptors
            return descriptors
        return self.cache[name]

    def full_image_queries(self, image: KeyedImage) -> list[Tensor]:
        """Returns one (C, h, w) a layer: queries at the uncropped image under a prompt without content.

        The mean over several draws of noise, at the source's timestep.
        """
        pipeline, timestep = self.model.pipeline, self.settings.timestep
        latent = pipeline.encode(pipeline.squash(image.pixels))
        noise = torch.cat([self.noise(latent.shape, image.key, "whole", draw) for draw in range(self.draws)])
        noisy = pipeline.add_noise(latent.expand_as(noise), noise.to(latent), timestep)
        maps = []
        for query in self._frozen_queries(noisy, timestep):
            rows = query.mean(0).transpose(0, 1).flatten(1)  # (h * w, heads * d)
            maps.append(rows.T.unflatten(1, (round(len(rows) ** 0.5), -1)))
        return maps

    def encode(self, image: KeyedImage, boxes: Tensor) -> Tensor:
        """Returns the latents of crops of ``image`` at ``boxes`` (C, 3)."""
        pipeline = self.model.pipeline
        cut = crop_pixels if self.settings.crop_edges == "pixels" else crop
        square = pipeline.squash(image.pixels)[0]
        return torch.cat(self._batch.run(lambda rows: pipeline.encode(cut(square, boxes[rows])), len(boxes)))

    def noise(self, shape: Sequence[int], *seeds: Hashable) -> Tensor:
        """Returns noise (*shape) on the CPU, of the settings' kind; it depends on their seed and ``seeds`` only."""
        random = generator(self.settings.seed, *seeds)
        sampler = torch.randn if self.settings.noise == "gaussian" else torch.rand
        return sampler(tuple(shape), generator=random)

    @torch.no_grad()
    def _frozen_queries(self, latents: Tensor, timestep: int) -> list[Tensor]:
        """Returns one (R, heads, h * w, d) a layer for R noisy latents."""
        unet, null_prompt = self.model.unet, self.model.null_prompt

        def record(rows: slice) -> list[Tensor]:
            """Returns the queries of the latents at ``rows``, one a layer."""
            some = latents[rows]
            every = torch.arange(len(some), device=some.device)
            recorded = unet.record(unet.prefix(some, timestep), every, null_prompt.expand(len(some), -1, -1))
            return [recording.query.float() for recording in recorded]

        return [torch.cat(of_layer) for of_layer in zip(*self._batch.run(record, len(latents)), strict=True)]


def _descriptors(queries: list[Tensor]) -> Tensor:
    """Returns descriptors of length 1, (C, h, w), made of the queries (C', h', w') of all layers."""
    side = min(CELLS, max(query.shape[-1] for query in queries))
    of_layers = []
    for query in queries:
        centred = query - query.mean((1, 2), keepdim=True)
        pooled = F.interpolate(centred[None], (side, side), mode="area" if query.shape[-1] > side else "bilinear")[0]
        of_layers.append(F.normalize(pooled, dim=0))
    return F.normalize(torch.cat(of_layers), dim=0)
