"""The frozen model, and images as prompts see them through it."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from teacher.adaptive_batch import AdaptiveBatch
from teacher.attention import choose_layers
from teacher.crop_attention import (
    ConditionedCropAttention,
    CropAttention,
    CropPool,
    FreshCrops,
    FrozenCropAttention,
    full_image_queries,
)
from teacher.lru_cache import LRUCache
from teacher.pipeline import Pipeline, load_pipeline
from teacher.settings import Settings
from teacher.text import null_prompt
from teacher.unet import PromptedUNet

FROZEN_DRAWS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FeatureCache:
    """Loads the model at the first use, and keeps what it has encoded of the images that it saw last.

    Args:
        folder: of the pipeline.
        settings: of the method.
        device: where all is computed.
        image_size: side in px of what the UNet sees; without it, what it was trained at.
        prompt_length: tokens of a prompt; without it, what the tokenizer says.
        chunk: crops that are encoded together, to begin with.
        kept: how many images' encoded crops are kept.
        truncate: see :class:`teacher.unet.PromptedUNet`.
        share: see there.
        variant: of the pipeline's weight files.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        device: torch.device,
        image_size: int | None,
        prompt_length: int | None,
        chunk: int,
        kept: int,
        truncate: bool = True,
        share: bool = True,
        variant: str | None = None,
    ) -> None:
        self.folder, self.settings, self.device, self._variant = folder, settings, device, variant
        self._image_size, self._prompt_length = image_size, prompt_length
        self._truncate, self._share = truncate, share
        self._chunks = AdaptiveBatch(chunk)
        self._views: LRUCache[CropAttention] = LRUCache(kept)

    def views(self, image: Tensor, key: str, timestep: int, mirrored: bool = False) -> CropAttention:
        """Returns what prompts see of ``image`` (3, H, W) in [0, 1], or of its mirror image, at a diffusion time.

        Args:
            image: of any size; squashed to the model's.
            key: names its content.
            timestep: diffusion time.
            mirrored: left to right.
        """
        name = (key, timestep, mirrored)
        if name not in self._views:
            self._views[name] = self._look(*_turned(image, key, mirrored), timestep)
        return self._views[name]

    def _look(self, image: Tensor, key: str, timestep: int) -> CropAttention:
        settings = self.settings
        given = (self.pipeline, settings, self.pipeline.squash(image)[0], key, timestep, self._chunks)
        if settings.crop_source == "fresh":
            return ConditionedCropAttention(self.unet, FreshCrops(*given))
        crops = CropPool(*given)
        if settings.queries == "conditioned":
            return ConditionedCropAttention(self.unet, crops)
        return FrozenCropAttention(self.unet, crops, self._null_prompt, self._draws, self._chunks)

    def full_image_queries(self, image: Tensor, key: str, mirrored: bool = False) -> list[Tensor]:
        """Returns one (C, h, w) a layer, the queries at the uncropped image, see :func:`teacher.crop_attention.full_image_queries`.

        Arguments as for :meth:`views`.
        """
        seen, name = _turned(image, key, mirrored)
        given = (self.unet, self.pipeline, self.settings, self.pipeline.squash(seen)[0], name)
        return full_image_queries(*given, self._null_prompt, self._draws, self._chunks)

    @property
    def _draws(self) -> int:
        return self.settings.noise_draws or FROZEN_DRAWS

    @cached_property
    def pipeline(self) -> Pipeline:
        """The frozen model, loaded at the first use."""
        dtype = DTYPES[self.settings.precision]
        return load_pipeline(str(self.folder), self._image_size, self._prompt_length, dtype, self.device, self._variant)

    @cached_property
    def unet(self) -> PromptedUNet:
        """Its denoiser, whose chosen layers can be read."""
        layers = choose_layers(self.pipeline.unet, self.settings.layers)
        return PromptedUNet(self.pipeline.unet, layers, self.pipeline.image_size, self._truncate, self._share)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """L, D of a prompt."""
        return self.pipeline.prompt_length, self.pipeline.prompt_width

    @property
    def map_side(self) -> int:
        """Cells a side of the grid on which maps are compared and accumulated."""
        side = self.settings.map_side
        return self.pipeline.image_size if side == "image" else side or 2 * int(self.pipeline.unet.config.sample_size)

    @cached_property
    def _null_prompt(self) -> Tensor:
        return null_prompt(self.pipeline, self.settings.null_prompt)


def _turned(image: Tensor, key: str, mirrored: bool) -> tuple[Tensor, str]:
    """Returns an image and its name, or its mirror image and that one's name."""
    return (image.flip(-1), f"{key} mirrored") if mirrored else (image, key)
