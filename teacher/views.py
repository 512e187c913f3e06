"""An image as the method looks at it: a pool of noisy crops, through which prompts attend to it.

Two ways to look: with the prompt's influence on the features, as in the paper, or without it.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from teacher.attention import read_token, split_heads
from teacher.crops import crop, crop_boxes
from teacher.pipeline import Pipeline
from teacher.settings import Settings
from teacher.unet import PromptedUNet


def generator(*seeds: object) -> torch.Generator:
    """Returns a generator on the CPU whose numbers depend on all of ``seeds`` and on nothing else."""
    digest = hashlib.blake2b(repr(seeds).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class NoisyCrops:
    """The latents of an image's pool of crops, to be diffused to one timestep with reproducible noise.

    Args:
        pipeline: encodes the crops, once.
        settings: of the method.
        image: (3, S, S) in [0, 1] at the pipeline's size.
        key: what is random about the image is drawn from this and the seed.
        timestep: diffusion time.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, image: Tensor, key: str, timestep: int) -> None:
        self.pipeline, self.settings, self.key, self.timestep = pipeline, settings, key, timestep
        corners = 4
        n_random = settings.crop_pool - corners
        boxes = crop_boxes(n_random, settings.crop_ratio, generator(settings.seed, key, "crops"))
        self.boxes = boxes.to(image)
        self.latents = pipeline.encode(crop(image, self.boxes))

    def diffused(self, draw: int) -> Tensor:
        """Returns all crops (P, C, h, w) with the noise of draw number ``draw``."""
        random = generator(self.settings.seed, self.key, "noise", draw)
        sampler = torch.randn if self.settings.noise == "gaussian" else torch.rand
        noise = sampler(self.latents.shape, generator=random).to(self.latents)
        return self.pipeline.add_noise(self.latents, noise, self.timestep)


class ConditionedViews:
    """The method of the paper: every prompt runs through the UNet and changes the features that it attends to."""

    def __init__(self, unet: PromptedUNet, crops: NoisyCrops) -> None:
        self.unet, self.crops, self.boxes = unet, crops, crops.boxes

    def attend(self, prompts: Tensor, crop_of: Tensor, draw: int) -> list[Tensor]:
        """Returns the attention maps of R prompts.

        Args:
            prompts: (R, L, D).
            crop_of: (R,) int64, the crop of the pool that each prompt looks at.
            draw: number of the noise.

        Returns:
            One (R, h, w) in [0, 1] a layer, differentiable with respect to ``prompts``.
        """
        used, row_of = crop_of.unique(return_inverse=True)
        prefix = self.unet.prefix(self.crops.diffused(draw % self._draws)[used], self.crops.timestep)
        recorded = self.unet.record(prefix, row_of, prompts)
        scales = [layer.attention.scale for layer in self.unet.layers]
        return [read_token(r.query, r.key, scale) for r, scale in zip(recorded, scales, strict=True)]

    @property
    def _draws(self) -> int:
        return self.crops.settings.noise_draws or 1 << 30


class FrozenViews:
    """A shortcut: the UNet runs once per noisy crop with a prompt that says nothing, and its queries are kept.

    A prompt then acts through the keys of the layers that are read only, so that no step of the optimisation runs the
    UNet. The maps differ from the paper's, because there the prompt also acts on the features.
    """

    def __init__(self, unet: PromptedUNet, crops: NoisyCrops, null_prompt: Tensor, draws: int) -> None:
        self.boxes, self.draws = crops.boxes, draws
        self.layers = [layer.attention for layer in unet.layers]
        self.queries = self._queries(unet, crops, null_prompt)

    @torch.no_grad()
    def _queries(self, unet: PromptedUNet, crops: NoisyCrops, null_prompt: Tensor) -> Sequence[Tensor]:
        """One (draws, P, heads, h * w, d) a layer."""
        every_crop = torch.arange(len(crops.boxes), device=crops.latents.device)
        prompts = null_prompt.expand(len(every_crop), -1, -1)
        recorded = [
            unet.record(unet.prefix(crops.diffused(draw), crops.timestep), every_crop, prompts)
            for draw in range(self.draws)
        ]
        return [torch.stack([r.query.float() for r in of_layer]) for of_layer in zip(*recorded, strict=True)]

    def attend(self, prompts: Tensor, crop_of: Tensor, draw: int) -> list[Tensor]:
        """See :meth:`ConditionedViews.attend`."""
        maps = []
        for layer, queries in zip(self.layers, self.queries, strict=True):
            key = split_heads(layer.to_k(prompts.to(layer.to_k.weight.dtype)), layer.heads)
            maps.append(read_token(queries[draw % self.draws][crop_of], key, layer.scale))
        return maps


Views = ConditionedViews | FrozenViews
