"""Nearest neighbours among diffusion features: a matcher hundreds of times cheaper than prompt optimisation.

Tang et al., "Emergent Correspondence from Image Diffusion" (DIFT), NeurIPS 2023: a noisy image is passed once through
the frozen UNet, and the output of one block of the decoder describes its pixels. Several draws of noise are averaged.
Which layers are read, with which weights and how much noise, are settings: CleanDIFT's weights want no noise
(:mod:`teacher.unet_weights`), and SDXL's inner layers describe better than its blocks (:mod:`teacher.feature_layers`).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from teacher import text
from teacher.attention import named_blocks
from teacher.feature_layers import FeatureLayer, choose_features, feature_layers, record
from teacher.feature_matcher import FeatureMatcher, FeatureSettings, joined
from teacher.frozen_model import DTYPES
from teacher.pipeline import Pipeline, as_device, check_folder, load_pipeline, locate_folder, weights_digest
from teacher.pipeline_checks import check_sizes
from teacher.pipeline_files import file_digest
from teacher.settings import Names, NullPrompt, Timestep
from teacher.unet import added_conditions
from teacher.unet_weights import check_unet_weights, load_unet_weights, locate_unet_weights, meta_unet

VERSION = "3"


class DiffusionFeaturesSettings(FeatureSettings):
    """Settings of diffusion features. Those not listed here are of :class:`FeatureSettings`.

    Attributes:
        layers: what is read, see :mod:`teacher.feature_layers`; several are joined after normalisation. None for what
            suits the model, see :func:`default_features`.
        timestep: diffusion time; None for what suits the model.
        draws: draws of noise that are averaged. The paper's 8. CleanDIFT's weights want 0.
        null_prompt: what the UNet is given: the text encoder's "empty" prompt, or "zeros"; SDXL is given zeros for either.
    """

    layers: Names | None = None
    timestep: Timestep | None = None
    null_prompt: NullPrompt = "empty"


class FeatureChoice(NamedTuple):
    """Which layers are read, and at which diffusion time."""

    layers: tuple[str, ...]
    timestep: int


SDXL = FeatureChoice(("up@1/4:5.transformer", "up@1/4:7.transformer", "up@1/2:0.cross_q", "up@1/2:0.transformer"), 50)
"""What is read of SDXL: ``config_xl_practical.json`` and the time of Meng et al., NeurIPS 2024
(github.com/Darkbblue/generic-diffusion-feature)."""


SMALL = FeatureChoice(("up@1/4", "up@1/2:0.transformer"), 150)
"""What is read of the shipped small model; chosen among single layers and pairs of them on 60 training pairs."""


class DiffusionFeatures(FeatureMatcher):
    """Compares the features of a Stable Diffusion's UNet by their cosine.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        image_size: side in px of what the UNet sees; None for what it was trained at (1024 for SDXL).
        prompt_length: tokens of a prompt; None for what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        variant: of its weight files, such as "fp16"; None for the plain files or the only variant there is.
        unet_weights: a safetensors file with other weights of the same UNet, here or as ``organisation/repository/file`` of the
            hub; None for the pipeline's.
        settings: see :class:`DiffusionFeaturesSettings`.

    Raises:
        ConfigError: for settings that cannot work, and layers that the UNet does not have, before weights are read.
        WeightsError: for a folder that is not a whole pipeline, or weights of another UNet, before weights are read.
    """

    settings: DiffusionFeaturesSettings

    def __init__(
        self,
        model: str,
        image_size: int | None = None,
        prompt_length: int | None = None,
        device: str = "auto",
        variant: str | None = None,
        unet_weights: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(as_device(device), DiffusionFeaturesSettings(**settings))
        self.model, self.image_size, self.prompt_length = model, image_size, prompt_length
        self.variant, self.folder = variant, locate_folder(model, variant)
        check_folder(self.folder, variant)
        self.settings = text.settle_null_prompt(self.settings, self.folder)
        unet = meta_unet(self.folder)
        self.choice = _chosen(unet, self.settings)
        check_sizes(self.folder, image_size, prompt_length, (self.choice.timestep,))
        if self.settings.null_prompt == "empty":
            text.check_text(self.folder, variant, prompt_length)
        self.unet_weights = None if unet_weights is None else locate_unet_weights(unet_weights)
        if self.unet_weights is not None:
            check_unet_weights(self.unet_weights, unet)

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        chosen = {"layers": " ".join(self.choice.layers), "timestep": str(self.choice.timestep)}
        reads_text = self.settings.null_prompt == "empty"
        other = {} if self.unet_weights is None else {"unet_weights": file_digest(self.unet_weights)}
        return {
            **self.settings.decisive(),
            **chosen,
            "method": f"diffusion_features {VERSION}",
            "weights": weights_digest(self.folder, reads_text, self.variant),
            "image_size": str(self.image_size or "the model's"),
            **text.prompt_fingerprint(self.folder, self.prompt_length, reads_text),
            **other,
        }

    def _compute(self, image: Tensor, key: str) -> Tensor:
        """See :meth:`teacher.feature_matcher.FeatureMatcher._compute`."""
        noisy = self._noisy(self.pipeline.encode(self.pipeline.squash(image)), key)
        batches = self._batch.run(lambda rows: self._features(noisy[rows]), len(noisy))
        return joined([torch.cat(of_layer).float().mean(0) for of_layer in zip(*batches, strict=True)])

    def _noisy(self, latent: Tensor, key: str) -> Tensor:
        """Returns the latent (1, C, h, w) at the diffusion time with each draw of noise; as it is where there are none."""
        if not self.settings.draws:
            return latent
        return self.pipeline.add_noise(latent, self._noise(latent, key), self.choice.timestep)

    def _features(self, noisy: Tensor) -> list[Tensor]:
        """Returns what the layers put out, one (R, C, h, w) each, for noisy latents; nothing after them is computed."""
        unet, noisy = self.pipeline.unet, noisy.to(self.pipeline.unet.dtype)
        prompts = self._null_prompt.to(noisy.dtype).expand(len(noisy), -1, -1)
        conditions = added_conditions(unet, noisy, self.pipeline.image_size)
        self.passes += len(noisy)
        return record(
            self._layers, lambda: unet(noisy, self.choice.timestep, prompts, added_cond_kwargs=conditions or None)
        )

    @property
    def size(self) -> int:
        """Side of the images that it is best given, px."""
        return self.pipeline.image_size

    @cached_property
    def pipeline(self) -> Pipeline:
        """The frozen model, loaded at the first use."""
        dtype = DTYPES[self.settings.precision]
        pipeline = load_pipeline(
            str(self.folder), self.image_size, self.prompt_length, dtype, self.device, self.variant
        )
        if self.unet_weights is not None:
            load_unet_weights(pipeline.unet, self.unet_weights)
        return pipeline

    @cached_property
    def _layers(self) -> list[FeatureLayer]:
        return choose_features(self.pipeline.unet, self.choice.layers)

    @cached_property
    def _null_prompt(self) -> Tensor:
        return text.null_prompt(self.pipeline, self.settings.null_prompt)


def default_features(unet: UNet2DConditionModel) -> FeatureChoice:
    """Returns what is read where the settings do not say.

    SDXL, told by its second conditioning: ``SDXL``. Three blocks without it, as in the shipped small model: ``SMALL``. SD 1.x, 2.x and any
    other, such as a smaller SDXL: the second block of the decoder at time 261, as in DIFT.
    """
    present = {name for layer in feature_layers(unet) for name in (layer.name, layer.place)}
    is_sdxl = unet.config.addition_embed_type == "text_time"
    for choice, fits in (
        (SDXL, is_sdxl),
        (SMALL, not is_sdxl and len(unet.up_blocks) == 3),
    ):
        if fits and present.issuperset(choice.layers):
            return choice
    decoder = [place for place, _ in named_blocks(unet) if place.startswith("up@")]
    return FeatureChoice((decoder[min(1, len(decoder) - 1)],), 261)


def _chosen(unet: UNet2DConditionModel, settings: DiffusionFeaturesSettings) -> FeatureChoice:
    """Returns the layers by their full names, and the diffusion time.

    Raises:
        ConfigError: for a layer that the UNet does not have.
    """
    default = default_features(unet)
    names: Sequence[str] = default.layers if settings.layers is None else settings.layers
    layers = tuple(layer.name for layer in choose_features(unet, names))
    return FeatureChoice(layers, default.timestep if settings.timestep is None else settings.timestep)
