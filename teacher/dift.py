"""Nearest neighbours among diffusion features: a matcher hundreds of times cheaper than prompt optimisation.

Tang et al., "Emergent Correspondence from Image Diffusion" (DIFT), NeurIPS 2023: a noisy image is passed once through
the frozen UNet, and the output of one block of the decoder describes its pixels. Several draws of noise are averaged.
"""

from contextlib import suppress
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_images, check_query
from distill.core.errors import ConfigError
from distill.core.geometry import image_size, sample_at
from distill.core.precision import without_autocast
from distill.core.readout import windowed_soft_argmax
from distill.core.types import Matches, PairBatch
from teacher import text
from teacher.crop_sampling import generator
from teacher.memory import AdaptiveBatch, TensorCache
from teacher.pipeline import Pipeline, as_device, check_folder, load_pipeline, locate_folder, weights_digest
from teacher.prompt_optimization import content_hashes
from teacher.settings import Amount, CheckedSettings, Count, NullPrompt, Positive, Seed, Timestep
from teacher.unet import added_conditions

VERSION = "1"


class DiffusionFeaturesSettings(CheckedSettings):
    """Settings of diffusion features.

    Attributes:
        block: number of the decoder's block, from 0, the coarsest. The paper's 1 of Stable Diffusion 2.1.
        timestep: diffusion time. The paper's 261.
        draws: draws of noise that are averaged. The paper's 8.
        null_prompt: what the UNet is given: the text encoder's "empty" prompt, or "zeros".
        temperature: of the soft-argmax over cosines in a window around the best cell.
        radius_cells: of that window.
        seed: of the noise; with the image's content it decides each draw.
        batch_size: draws that run together, at most. When memory runs out, the cache is emptied first, then it is halved.
        feature_cache_size: bound on the memory of kept features of images, GiB, on the model's device.
    """

    block: Timestep = 1
    timestep: Timestep = 261
    draws: Count = 8
    null_prompt: NullPrompt = "empty"
    temperature: Positive = 0.05
    radius_cells: Positive = 2.0
    seed: Seed = 0
    batch_size: Count = 8
    feature_cache_size: Amount = 1.0


class DiffusionFeatures:
    """Compares the features of a Stable Diffusion's decoder by their cosine.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        variant: of its weight files, such as "fp16"; None for the plain files or the only variant there is.
        image_size: side in px of what the UNet sees; None for what it was trained at.
        prompt_length: tokens of a prompt; None for what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        settings: see :class:`DiffusionFeaturesSettings`.

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
        variant: str | None = None,
        **settings: Any,
    ) -> None:
        self.device = as_device(device)
        self.settings = DiffusionFeaturesSettings(**settings)
        self.model, self.image_size, self.prompt_length = model, image_size, prompt_length
        self.variant, self.folder = variant, locate_folder(model, variant)
        check_folder(self.folder, variant)
        if self.settings.null_prompt == "empty":
            text.check_text(self.folder, variant)
        self._cache = TensorCache(self.settings.feature_cache_size)
        self._batch = AdaptiveBatch(self.settings.batch_size, (self._cache,))

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        settings = self.settings.model_dump(exclude={"batch_size", "feature_cache_size"})
        return {name: str(value) for name, value in settings.items()} | {
            "method": f"diffusion_features {VERSION}",
            "weights": weights_digest(self.folder, self.settings.null_prompt == "empty", self.variant),
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
        points, size, settings = src_kps.to(self.device, torch.float32), image_size(trg_img), self.settings
        with without_autocast(points):
            src_map, trg_map = (
                torch.stack([self.describe(image, key) for image, key in zip(images, keys, strict=True)])
                for images, keys in ((src_img, src_keys), (trg_img, trg_keys))
            )
            queries = F.normalize(sample_at(src_map, points, image_size(src_img)), dim=-1)
            heatmap = torch.einsum("bnc,bchw->bnhw", queries, trg_map)
            found = windowed_soft_argmax(heatmap, size, settings.temperature, settings.radius_cells)
        confidence = ((1 + heatmap.amax((-2, -1))) / 2).clamp(0, 1)
        return Matches(*(values.to(src_kps.device) for values in (found, confidence, heatmap)))

    @torch.no_grad()
    def describe(self, image: Tensor, key: str) -> Tensor:
        """Returns descriptors of length 1, (C, h, w), of ``image`` (3, H, W) in [0, 1]; ``key`` names its content."""
        if key in self._cache:
            return self._cache[key]
        settings = self.settings
        latent = self.pipeline.encode(self.pipeline.squash(image))
        generators = [generator(settings.seed, key, draw) for draw in range(settings.draws)]
        noise = torch.cat([torch.randn(latent.shape, generator=random) for random in generators])
        noisy = self.pipeline.add_noise(latent, noise.to(latent), settings.timestep)
        features = torch.cat(self._batch.run(lambda rows: self._features(noisy[rows]), settings.draws))
        self._cache[key] = descriptors = F.normalize(features.float().mean(0), dim=0)
        return descriptors

    def _features(self, noisy: Tensor) -> Tensor:
        """Returns what the block puts out, (R, C, h, w), for noisy latents; nothing after it is computed."""
        unet, kept = self.pipeline.unet, []

        def leave(module: torch.nn.Module, arguments: object, output: Tensor) -> NoReturn:
            kept.append(output)
            raise _BlockReached

        prompts = self._null_prompt.expand(len(noisy), -1, -1)
        conditions = added_conditions(unet, noisy, self.pipeline.image_size)
        handle = unet.up_blocks[self.settings.block].register_forward_hook(leave)
        try:
            with suppress(_BlockReached):
                unet(noisy, self.settings.timestep, prompts, added_cond_kwargs=conditions or None)
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
        if self.settings.block >= count:
            raise ConfigError(
                f"Expected block of diffusion features below {count}, this UNet's, but got {self.settings.block}."
            )
        return pipeline

    @cached_property
    def _null_prompt(self) -> Tensor:
        return text.null_prompt(self.pipeline, self.settings.null_prompt)


class _BlockReached(Exception):
    """Leaves the forward pass where nothing that follows is needed."""
