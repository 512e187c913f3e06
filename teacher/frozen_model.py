"""The frozen Stable Diffusion of a teacher, loaded at the first use."""

import logging
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from distill.core.devices import has_bf16
from distill.core.errors import ConfigError
from teacher.attention import choose_layers
from teacher.pipeline import Pipeline, load_pipeline
from teacher.settings import Precision, Settings
from teacher.text import null_prompt
from teacher.unet import PromptedUNet

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenModel:
    """Autoencoder and UNet of a pipeline folder, with the chosen cross-attention layers of the UNet readable.

    Args:
        folder: of the pipeline.
        settings: of the method.
        device: of the weights.
        image_size: side in px of the UNet's images; None for what it was trained at.
        prompt_length: tokens of a prompt; None for what the tokenizer says.
        variant: of the pipeline's weight files.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        device: torch.device,
        image_size: int | None,
        prompt_length: int | None,
        variant: str | None = None,
    ) -> None:
        self.folder, self.settings, self.device = folder, settings, device
        self._image_size, self._prompt_length, self._variant = image_size, prompt_length, variant

    @cached_property
    def pipeline(self) -> Pipeline:
        """The parts of the pipeline, in the precision of the settings."""
        dtype = DTYPES[self.settings.precision]
        pipeline = load_pipeline(
            str(self.folder), self._image_size, self._prompt_length, dtype, self.device, self._variant
        )
        for part in (pipeline.vae, pipeline.unet):
            part.to(memory_format=torch.channels_last)  # convolutions are faster, on processors too
        return pipeline

    @cached_property
    def unet(self) -> PromptedUNet:
        """The UNet, whose chosen layers are recorded."""
        unet, settings = self.pipeline.unet, self.settings
        layers = choose_layers(unet, settings.layers)
        return PromptedUNet(unet, layers, self.pipeline.image_size, settings.truncate_unet, settings.share_prefix)

    @cached_property
    def null_prompt(self) -> Tensor:
        """A prompt (L, D) without content."""
        return null_prompt(self.pipeline, self.settings.null_prompt)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """L, D of a prompt."""
        return self.pipeline.prompt_length, self.pipeline.prompt_width

    @property
    def map_side(self) -> int:
        """Cells a side of the grid on which maps are compared and accumulated."""
        side = self.settings.map_side
        if side == "image":
            return self.pipeline.image_size
        return 2 * self.pipeline.latent_side if side is None else side


def settle_precision(asked: Precision, device: torch.device) -> Precision:
    """Returns the precision to compute in.

    That is the one asked for, but bf16 on a processor without instructions for it, where it is slower than fp32 by
    large factors: there it is fp32, with a warning. Labels are stored under what was computed.

    Raises:
        ConfigError: for fp16 on a processor, which has the range of fp16 but not its speed.
    """
    if device.type != "cpu" or asked == "fp32":
        return asked
    if asked == "fp16":
        raise ConfigError("Expected precision=fp32 or bf16 on a CPU but got fp16, which it is slow at; use bf16.")
    if not has_bf16():
        log.warning("This processor has no instructions for bf16 and would be slow at it; computing in fp32.")
        return "fp32"
    return asked
