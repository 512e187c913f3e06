"""Nearest neighbours among diffusion features: a matcher hundreds of times cheaper than prompt optimisation.

Tang et al., "Emergent Correspondence from Image Diffusion" (DIFT), NeurIPS 2023: a noisy image is passed once through
the frozen UNet, and the output of one block of the decoder describes its pixels. Several draws of noise are averaged.
"""

from contextlib import suppress
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_images, check_query
from distill.core.errors import ConfigError
from distill.core.geometry import image_size, sample_at
from distill.core.readout import windowed_soft_argmax
from distill.core.types import Matches, PairBatch
from teacher import text
from teacher.adaptive_batch import AdaptiveBatch
from teacher.crop_sampling import generator
from teacher.lru_cache import LRUCache
from teacher.pipeline import Pipeline, as_device, check_folder, load_pipeline, locate_folder, weights_digest
from teacher.prompt_optimization import content_hashes
from teacher.settings import NullPrompt
from teacher.unet import added_conditions

VERSION = "1"


class DiffusionFeatures:
    """Compares the features of a Stable Diffusion's decoder by their cosine.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        variant: of its weight files, such as "fp16"; without it, the plain files or the only variant there is.
        image_size: side in px of what the UNet sees; without it, what it was trained at.
        prompt_length: tokens of a prompt; without it, what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        block: which block of the decoder, from 0, the coarsest. The paper's 1 of Stable Diffusion 2.1.
        timestep: diffusion time. The paper's 261.
        draws: how many draws of noise are averaged. The paper's 8.
        null_prompt: what the UNet is given: the text encoder's "empty" prompt, or "zeros".
        temperature: of the soft-argmax over cosines in a window around the best cell.
        radius_cells: of that window.
        chunk: draws that run together, to begin with; halved whenever the memory does not suffice.
        feature_cache_size: how many images' features are kept in memory.
        seed: of the noise; with the image's content it decides each draw.

    Raises:
        ConfigError: for settings that cannot work, before weights are read.
        WeightsError: for a folder that is not a whole pipeline, before weights are read.
    """

    def __init__(
        self,
        model: str,
        image_size: int | None = None,
        prompt_length: int | None = None,
        device: str = "auto",
        block: int = 1,
        timestep: int = 261,
        draws: int = 8,
        null_prompt: NullPrompt = "empty",
        temperature: float = 0.05,
        radius_cells: float = 2.0,
        chunk: int = 8,
        feature_cache_size: int = 64,
        seed: int = 0,
        variant: str | None = None,
    ) -> None:
        for name, value, least in (
            ("block", block, 0),
            ("timestep", timestep, 0),
            ("draws", draws, 1),
            ("chunk", chunk, 1),
        ):
            if value < least:
                raise ConfigError(f"Expected {name} of diffusion features to be at least {least} but got {value}.")
        if temperature <= 0:
            raise ConfigError(f"Expected temperature of diffusion features to be positive but got {temperature}.")
        self.device = as_device(device)
        self.model, self.image_size, self.prompt_length = model, image_size, prompt_length
        self.block, self.timestep, self.draws, self.null_prompt = block, timestep, draws, null_prompt
        self.temperature, self.radius_cells, self.seed = temperature, radius_cells, seed
        self.variant, self.folder = variant, locate_folder(model, variant)
        check_folder(self.folder, variant)
        if null_prompt == "empty":
            text.check_text(self.folder, variant)
        self._chunks = AdaptiveBatch(chunk)
        self._kept: LRUCache[Tensor] = LRUCache(feature_cache_size)

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        names = ("block", "timestep", "draws", "null_prompt", "temperature", "radius_cells", "seed")
        return {name: str(getattr(self, name)) for name in names} | {
            "method": f"diffusion_features {VERSION}",
            "weights": weights_digest(self.folder, self.null_prompt == "empty", self.variant),
            "image_size": str(self.image_size or "the model's"),
            "prompt_length": str(self.prompt_length or "the model's"),
        }

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        The heatmap holds cosines; the confidence is the best cosine, as (1 + cos) / 2.

        Raises:
            DataError: for images or points that are not as the contract says.
        """
        check_query(src_img, trg_img, src_kps)
        return self._match(src_img, trg_img, src_kps, *map(content_hashes, (src_img, trg_img)))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """Matches all points of ``pairs``, which name their images' content."""
        check_images(pairs.src_img, "src_img")
        check_images(pairs.trg_img, "trg_img")
        return self._match(pairs.src_img, pairs.trg_img, pairs.src_kps, pairs.src_hash, pairs.trg_hash)

    @torch.no_grad()
    def _match(
        self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor, src_keys: list[str], trg_keys: list[str]
    ) -> Matches:
        src_map, trg_map = (
            torch.stack([self.describe(image, key) for image, key in zip(images, keys, strict=True)])
            for images, keys in ((src_img, src_keys), (trg_img, trg_keys))
        )
        points = src_kps.to(self.device, torch.float32)
        queries = F.normalize(sample_at(src_map, points, image_size(src_img)), dim=-1)
        heatmap = torch.einsum("bnc,bchw->bnhw", queries, trg_map)
        size = image_size(trg_img)
        found = windowed_soft_argmax(heatmap, size, self.temperature, self.radius_cells)
        confidence = ((1 + heatmap.amax((-2, -1))) / 2).clamp(0, 1)
        return Matches(found.to(src_kps), confidence.to(src_kps), heatmap.to(src_kps))

    @torch.no_grad()
    def describe(self, image: Tensor, key: str) -> Tensor:
        """Returns descriptors of length 1, (C, h, w), of ``image`` (3, H, W) in [0, 1]; ``key`` names its content."""
        if key not in self._kept:
            latent = self.pipeline.encode(self.pipeline.squash(image))
            noise = torch.cat(
                [torch.randn(latent.shape, generator=generator(self.seed, key, d)) for d in range(self.draws)]
            )
            noisy = self.pipeline.add_noise(latent, noise.to(latent), self.timestep)
            features = torch.cat(self._chunks.run(lambda rows: self._features(noisy[rows]), self.draws))
            self._kept[key] = F.normalize(features.float().mean(0), dim=0)
        return self._kept[key]

    def _features(self, noisy: Tensor) -> Tensor:
        """Returns what the block puts out, (R, C, h, w), for noisy latents; nothing after it is computed."""
        unet, kept = self.pipeline.unet, []

        def leave(module: torch.nn.Module, arguments: object, output: Tensor) -> NoReturn:
            kept.append(output)
            raise _BlockReached

        prompts = self._null_prompt.expand(len(noisy), -1, -1)
        conditions = added_conditions(unet, noisy, self.pipeline.image_size)
        handle = unet.up_blocks[self.block].register_forward_hook(leave)
        try:
            with suppress(_BlockReached):
                unet(noisy, self.timestep, prompts, added_cond_kwargs=conditions or None)
        finally:
            handle.remove()
        return kept[0]

    @property
    def size(self) -> int:
        """Side of the images that it is best given, px."""
        return self.pipeline.image_size

    @cached_property
    def pipeline(self) -> Pipeline:
        """The frozen model, loaded at the first use."""
        pipeline = load_pipeline(
            str(self.folder), self.image_size, self.prompt_length, device=self.device, variant=self.variant
        )
        count = len(pipeline.unet.up_blocks)
        if self.block >= count:
            raise ConfigError(f"Expected block of diffusion features below {count}, this UNet's, but got {self.block}.")
        return pipeline

    @cached_property
    def _null_prompt(self) -> Tensor:
        return text.null_prompt(self.pipeline, self.null_prompt)


class _BlockReached(Exception):
    """Leaves the forward pass where nothing that follows is needed."""
