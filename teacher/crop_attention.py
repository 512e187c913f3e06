"""An image as the method looks at it: noisy crops, through which prompts attend to it.

Two kinds of crops: a pool that is encoded once, or fresh ones. Two ways to look: with the prompt's influence on the
features, as in the paper, or without it.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from teacher.adaptive_batch import AdaptiveBatch
from teacher.attention import read_tokens, split_heads
from teacher.crop_sampling import CropBatch, CropSampler, PoolCropSampler, RandomCropSampler, crop_boxes, generator
from teacher.crops import crop, crop_pixels
from teacher.pipeline import Pipeline
from teacher.settings import Settings
from teacher.unet import PromptedUNet


class CropPool:
    """The latents of an image's pool of crops, to be diffused to one timestep with reproducible noise.

    Args:
        pipeline: encodes the crops, once.
        settings: of the method.
        image: (3, S, S) in [0, 1] at the pipeline's size.
        key: what is random about the image is drawn from this and the seed.
        timestep: diffusion time.
        chunks: how many crops are encoded together.
    """

    def __init__(
        self, pipeline: Pipeline, settings: Settings, image: Tensor, key: str, timestep: int, chunks: AdaptiveBatch
    ) -> None:
        self.pipeline, self.settings, self.key, self.timestep = pipeline, settings, key, timestep
        corners = 4
        n_random = settings.crop_pool - corners
        boxes = crop_boxes(n_random, settings.crop_ratio, generator(settings.seed, key, "crops"))
        self.boxes = _whole_pixels(boxes, image.shape[-1]) if settings.crop_edges == "pixels" else boxes
        self.boxes = self.boxes.to(image)
        self.latents = _encode(pipeline, image, self.boxes, chunks, settings)

    def looks(self, names: Sequence[tuple], once: bool) -> CropSampler:
        """Returns how prompts of these names look around; see :class:`teacher.crop_sampling.PoolCropSampler`."""
        return PoolCropSampler(self.boxes, names, self.settings, once)

    def diffused(self, draw: int) -> Tensor:
        """Returns all crops (P, C, h, w) with the noise of draw number ``draw``."""
        noise = _noise(self.latents, self.settings, (self.key, "noise", draw))
        return self.pipeline.add_noise(self.latents, noise, self.timestep)

    def noisy(self, aim: CropBatch, draw: int) -> tuple[Tensor, Tensor]:
        """Returns C noisy latents, and (R,) which of them each prompt looks at."""
        assert aim.crop_of is not None
        used, row_of = aim.crop_of.unique(return_inverse=True)
        return self.diffused(draw)[used], row_of


class FreshCrops:
    """Crops that are encoded at every look, as released; arguments as for :class:`CropPool`."""

    def __init__(
        self, pipeline: Pipeline, settings: Settings, image: Tensor, key: str, timestep: int, chunks: AdaptiveBatch
    ) -> None:
        self.pipeline, self.settings, self.key, self.timestep = pipeline, settings, key, timestep
        self.image, self.chunks = image, chunks

    def looks(self, names: Sequence[tuple], once: bool) -> CropSampler:
        """Returns how prompts of these names look around; see :class:`teacher.crop_sampling.RandomCropSampler`."""
        return RandomCropSampler(self.image.shape[-1], names, self.settings, self.image.device)

    def noisy(self, aim: CropBatch, draw: int) -> tuple[Tensor, Tensor]:
        """Returns the noisy latents of R crops, each with noise of its own, and (R,) their numbers."""
        boxes, row_of = aim.boxes.unique(dim=0, return_inverse=True)
        latents = _encode(self.pipeline, self.image, boxes, self.chunks, self.settings)[row_of]
        noise = torch.stack(
            [
                _noise(one, self.settings, (self.key, "noise", name, draw))
                for one, name in zip(latents, aim.names, strict=True)
            ]
        )
        return self.pipeline.add_noise(latents, noise, self.timestep), torch.arange(len(latents), device=latents.device)


class ConditionedCropAttention:
    """The method of the paper: every prompt runs through the UNet and changes the features that it attends to."""

    def __init__(self, unet: PromptedUNet, crops: CropPool | FreshCrops) -> None:
        self.unet, self.crops, self.looks = unet, crops, crops.looks

    def attend(self, prompts: Tensor, aim: CropBatch, draw: int, tokens: int = 1) -> list[Tensor]:
        """Returns the attention maps of R prompts.

        Args:
            prompts: (R, L, D).
            aim: what each looks at.
            draw: number of the noise.
            tokens: T, how many are read.

        Returns:
            One (R, T, h, w) in [0, 1] a layer, differentiable with respect to ``prompts``.
        """
        latents, row_of = self.crops.noisy(aim, draw % self._draws)
        prefix = self.unet.prefix(latents, self.crops.timestep)
        recorded = self.unet.record(prefix, row_of, prompts)
        upper = self.crops.settings.heads == "upper"
        scales = [layer.attention.scale for layer in self.unet.layers]
        return [read_tokens(r.query, r.key, s, tokens, upper) for r, s in zip(recorded, scales, strict=True)]

    @property
    def _draws(self) -> int:
        return self.crops.settings.noise_draws or 1 << 30


class FrozenCropAttention:
    """A shortcut: the UNet runs once per noisy crop with a prompt that says nothing, and its queries are kept.

    A prompt then acts through the keys of the layers that are read only, so that no step of the optimisation runs the
    UNet. The maps differ from the paper's, because there the prompt also acts on the features.
    """

    def __init__(
        self, unet: PromptedUNet, crops: CropPool, null_prompt: Tensor, draws: int, chunks: AdaptiveBatch
    ) -> None:
        self.looks, self.draws, self.upper = crops.looks, draws, crops.settings.heads == "upper"
        self.layers = [layer.attention for layer in unet.layers]
        self.queries = self._queries(unet, crops, null_prompt, chunks)

    @torch.no_grad()
    def _queries(
        self, unet: PromptedUNet, crops: CropPool, null_prompt: Tensor, chunks: AdaptiveBatch
    ) -> Sequence[Tensor]:
        """One (draws, P, heads, h * w, d) a layer."""
        of_draws = [
            _queries(unet, crops.diffused(draw), crops.timestep, null_prompt, chunks) for draw in range(self.draws)
        ]
        return [torch.stack(of_layer) for of_layer in zip(*of_draws, strict=True)]

    def attend(self, prompts: Tensor, aim: CropBatch, draw: int, tokens: int = 1) -> list[Tensor]:
        """See :meth:`ConditionedCropAttention.attend`."""
        assert aim.crop_of is not None
        maps = []
        for layer, queries in zip(self.layers, self.queries, strict=True):
            key = split_heads(layer.to_k(prompts.to(layer.to_k.weight.dtype)), layer.heads)
            query = queries[draw % self.draws][aim.crop_of]
            maps.append(read_tokens(query, key, layer.scale, tokens, self.upper))
        return maps


CropAttention = ConditionedCropAttention | FrozenCropAttention


@torch.no_grad()
def full_image_queries(
    unet: PromptedUNet,
    pipeline: Pipeline,
    settings: Settings,
    image: Tensor,
    key: str,
    null_prompt: Tensor,
    draws: int,
    chunks: AdaptiveBatch,
) -> list[Tensor]:
    """Returns with what queries the layers look at an uncropped image under a prompt that says nothing.

    Args:
        unet: its layers are read.
        pipeline: encodes the image.
        settings: of the method; the image is seen at ``timestep``.
        image: (3, S, S) in [0, 1] at the pipeline's size.
        key: its name, of which the noise is drawn.
        null_prompt: (L, D).
        draws: how many draws of noise are averaged.
        chunks: how many run together.

    Returns:
        One (C, h, w) a layer.
    """
    latent = pipeline.encode(image[None])
    noise = torch.cat([_noise(latent, settings, (key, "whole", draw)) for draw in range(draws)])
    noisy = pipeline.add_noise(latent.expand_as(noise), noise, settings.timestep)
    maps = []
    for query in _queries(unet, noisy, settings.timestep, null_prompt, chunks):
        rows = query.mean(0).transpose(0, 1).flatten(1)  # (h * w, heads * d)
        maps.append(rows.T.unflatten(1, (round(len(rows) ** 0.5), -1)))
    return maps


def _queries(
    unet: PromptedUNet, latents: Tensor, timestep: int, null_prompt: Tensor, chunks: AdaptiveBatch
) -> list[Tensor]:
    """Returns one (R, heads, h * w, d) a layer for R noisy latents."""

    def look(rows: slice) -> list[Tensor]:
        some = latents[rows]
        every = torch.arange(len(some), device=some.device)
        recorded = unet.record(unet.prefix(some, timestep), every, null_prompt.expand(len(some), -1, -1))
        return [recording.query.float() for recording in recorded]

    return [torch.cat(of_layer) for of_layer in zip(*chunks.run(look, len(latents)), strict=True)]


def _encode(pipeline: Pipeline, image: Tensor, boxes: Tensor, chunks: AdaptiveBatch, settings: Settings) -> Tensor:
    """Returns the latents of crops of ``image`` (3, S, S) at ``boxes`` (P, 3)."""
    cut = crop_pixels if settings.crop_edges == "pixels" else crop
    return torch.cat(chunks.run(lambda rows: pipeline.encode(cut(image, boxes[rows])), len(boxes)))


def _noise(like: Tensor, settings: Settings, seeds: tuple[Hashable, ...]) -> Tensor:
    random = generator(settings.seed, *seeds)
    sampler = torch.randn if settings.noise == "gaussian" else torch.rand
    return sampler(like.shape, generator=random).to(like)


def _whole_pixels(boxes: Tensor, side: int) -> Tensor:
    return (boxes.double() * side + 1e-9).floor().to(boxes) / side
