"""Features of images in the frozen model, computed at their first use and cached."""

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.tensor_cache import TensorCache
from teacher.adaptive_batch import AdaptiveBatch
from teacher.crop_sampling import crop_boxes, generator
from teacher.crops import crop, crop_pixels
from teacher.frozen_model import FrozenModel
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


class NoisyCrop(NamedTuple):
    """A crop of an image's pool, and a draw of noise for it.

    Attributes:
        image: that is cropped.
        draw: number of the noise.
        crop: number of the crop.
    """

    image: KeyedImage
    draw: int
    crop: int


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

    def latents(self, crops: Sequence[NoisyCrop]) -> Tensor:
        """Returns the latents (C, channels, h, w) of crops, without noise; those of all images are encoded together."""
        names = [("latents", crop.image.key, crop.crop) for crop in crops]
        known = {name: self.cache[name] for name in names if name in self.cache}
        missing = {name: crop for name, crop in zip(names, crops, strict=True) if name not in known}
        if missing:
            pools = {crop.image.key: self.pool(crop.image) for crop in missing.values()}
            boxes = torch.stack([pools[crop.image.key][crop.crop] for crop in missing.values()])
            encoded = self.encode([crop.image for crop in missing.values()], boxes)
            for name, latent in zip(missing, encoded, strict=True):
                known[name] = self.cache[name] = latent.clone()
        return torch.stack([known[name] for name in names])

    def noisy_latents(self, crops: Sequence[NoisyCrop], timestep: int) -> Tensor:
        """Returns the latents (C, channels, h, w) of crops, diffused to ``timestep``."""
        latents = self.latents(crops)
        shape, drawn = (self.settings.crop_pool + 1, *latents.shape[1:]), dict[tuple[str, int], Tensor]()
        for image, draw, _ in crops:
            if (image.key, draw) not in drawn:
                drawn[image.key, draw] = self.noise(shape, image.key, "noise", draw)
        noise = torch.stack([drawn[crop.image.key, crop.draw][crop.crop] for crop in crops])
        return self.model.pipeline.add_noise(latents, noise.to(latents), timestep)

    def queries(self, crops: Sequence[NoisyCrop], timestep: int) -> list[Tensor]:
        """Returns the queries of noisy crops under a prompt without content; those of all images run together.

        Returns:
            One (C, heads, h * w, d) a layer.
        """
        names = [("queries", crop.image.key, timestep, crop.draw, crop.crop) for crop in crops]
        known = {name: self.cache[name] for name in names if name in self.cache}
        missing = {name: crop for name, crop in zip(names, crops, strict=True) if name not in known}
        if missing:
            computed = self._frozen_queries(self.noisy_latents(list(missing.values()), timestep), timestep)
            for row, name in enumerate(missing):
                known[name] = self.cache[name] = [of_layer[row].clone() for of_layer in computed]
        return [torch.stack(of_layer) for of_layer in zip(*(known[name] for name in names), strict=True)]

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

    def describe(self, images: Sequence[KeyedImage]) -> None:
        """Computes the descriptors of ``images`` together, beforehand, as far as the cache is to keep them."""
        missing = {image.key: image for image in images if ("descriptors", image.key) not in self.cache}
        if self.cache.maxsize and len(missing) > 1:
            for key, queries in zip(missing, self._full_image_queries(list(missing.values())), strict=True):
                self.cache["descriptors", key] = _descriptors(queries)

    def full_image_queries(self, image: KeyedImage) -> list[Tensor]:
        """Returns one (C, h, w) a layer: queries at the uncropped image under a prompt without content.

        The mean over several draws of noise, at the source's timestep.
        """
        return self._full_image_queries([image])[0]

    def _full_image_queries(self, images: Sequence[KeyedImage]) -> list[list[Tensor]]:
        pipeline, timestep = self.model.pipeline, self.settings.timestep
        latents = self._encode([pipeline.squash(image.pixels) for image in images])
        shape = (1, *latents.shape[1:])
        drawn = [self.noise(shape, image.key, "whole", draw) for image in images for draw in range(self.draws)]
        repeated = latents.repeat_interleave(self.draws, 0)
        noisy = pipeline.add_noise(repeated, torch.cat(drawn).to(latents), timestep)
        maps: list[list[Tensor]] = [[] for _ in images]
        for query in self._frozen_queries(noisy, timestep):
            for number, of_image in enumerate(query.split(self.draws)):
                rows = of_image.mean(0).transpose(0, 1).flatten(1)  # (h * w, heads * d)
                maps[number].append(rows.T.unflatten(1, (round(len(rows) ** 0.5), -1)))
        return maps

    def encode(self, images: Sequence[KeyedImage], boxes: Tensor) -> Tensor:
        """Returns the latents of C crops, ``boxes`` (C, 3) of C images."""
        cut = crop_pixels if self.settings.crop_edges == "pixels" else crop
        squares = {image.key: self.model.pipeline.squash(image.pixels)[0] for image in images}

        def pixels(rows: slice) -> Tensor:
            """Returns the crops (R, 3, S, S) of some rows, cut out of one image after the other."""
            runs = [list(run) for _, run in groupby(range(len(images))[rows], key=lambda row: images[row].key)]
            return torch.cat([cut(squares[images[run[0]].key], boxes[run[0] : run[-1] + 1]) for run in runs])

        encoded = self._batch.run(lambda rows: self.model.pipeline.encode(pixels(rows)), len(images))
        return torch.cat(encoded)

    def _encode(self, squares: Sequence[Tensor]) -> Tensor:
        """Returns the latents of whole images (1, 3, S, S)."""
        encode = self.model.pipeline.encode
        return torch.cat(self._batch.run(lambda rows: encode(torch.cat(list(squares[rows]))), len(squares)))

    def noise(self, shape: Sequence[int], *seeds: Hashable) -> Tensor:
        """Returns noise (*shape) that depends on the seed and ``seeds`` only, drawn on the CPU: the same for all devices."""
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
