"""The parts of a Stable Diffusion pipeline folder that prompt optimisation needs: VAE, UNet and noise schedule.

Neither text encoder nor tokenizer is needed, because prompts are optimised as embeddings. Widths, sizes and the
prompt's length are read from the folder.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.core.devices import own_gpu
from distill.core.errors import ConfigError, WeightsError, in_one_line
from distill.core.geometry import resize_images
from distill.core.weights import check_finite, check_none_missing
from teacher.pipeline_checks import (
    check_folder,
    check_image_size,
    latent_factor,
    latent_statistics,
    read_noise_schedule,
    settle_prompt_length,
)
from teacher.pipeline_files import locate_folder, part_variant, read_config, weight_files, weights_digest

__all__ = ["Pipeline", "as_device", "check_folder", "load_pipeline", "locate_folder", "weights_digest"]

MOST_LAYERS = 1000
"""Layers of one kind in a configuration, at most."""
LARGEST = 10_000_000
"""Any other number in it."""
_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True)
class Pipeline:
    """A frozen Stable Diffusion without its text side.

    Attributes:
        vae: the autoencoder.
        unet: the denoiser.
        alphas_cumprod: (T,) share of signal power left at each timestep.
        image_size: side of its square images, px.
        prompt_length: L, tokens of a prompt.
        prompt_width: D, channels of a token.
        folder: where it was loaded from.
        variant: of the weights that were asked for.
    """

    vae: AutoencoderKL | AutoencoderTiny
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    image_size: int
    prompt_length: int
    prompt_width: int
    folder: Path
    variant: str | None = None

    @property
    def latent_side(self) -> int:
        """Side of the latents of its images."""
        return self.image_size // latent_factor(dict(self.vae.config))

    def squash(self, image: Tensor) -> Tensor:
        """Returns ``image`` (3, H, W) in [0, 1] as the model sees it: (1, 3, S, S), on its device."""
        image = image[None].to(self.vae.device, torch.float32)
        return resize_images(image, (self.image_size, self.image_size)).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the latents (B, C, h, w) of ``images`` (B, 3, S, S) in [0, 1]: posterior mean, scaled as trained on.

        A VAE whose configuration names ``latents_mean`` and ``latents_std`` is scaled by (z - mean) * scale / std, as in
        diffusers' pipelines of SDXL.
        """
        images = images.to(self.vae.dtype) * 2 - 1
        config = self.vae.config
        if isinstance(self.vae, AutoencoderTiny):
            return self.vae.encode(images).latents * config.scaling_factor
        latents = self.vae.encode(images).latent_dist.mean
        statistics = latent_statistics(dict(config), self.folder)
        if statistics is not None:
            mean, std = (value.to(latents) for value in statistics)
            return (latents - mean) * config.scaling_factor / std
        return (latents - (config.shift_factor or 0.0)) * config.scaling_factor

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Returns ``latents`` (B, C, h, w) diffused to ``timestep`` with ``noise`` of the same shape.

        Raises:
            ConfigError: for a timestep that the model does not have.
        """
        if not 0 <= timestep < len(self.alphas_cumprod):
            raise ConfigError(
                f"Expected timestep to be below {len(self.alphas_cumprod)} for this model but got {timestep}; lower it."
            )
        signal = float(self.alphas_cumprod[timestep])
        return signal**0.5 * latents + (1 - signal) ** 0.5 * noise.to(latents)


def load_pipeline(
    model: str,
    image_size: int | None = None,
    prompt_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> Pipeline:
    """Loads what is needed of a pipeline, frozen and in evaluation mode.

    Args:
        model: a pipeline folder as diffusers saves it, or the id of one on the Hugging Face hub.
        image_size: side of the images in px; without it, what the UNet was trained at.
        prompt_length: tokens of a prompt; without it, what the pipeline's tokenizer says.
        dtype: of the weights in memory.
        device: where they are.
        variant: of the weight files, such as "fp16"; without it, the plain files or the only variant there is.

    Raises:
        WeightsError: when parts are missing, truncated or of another architecture; before anything is loaded.
        ConfigError: when the prompt's length is not known or the image size does not suit the UNet.
    """
    folder = locate_folder(model, variant)
    check_folder(folder, variant)
    vae_config, unet_config = read_config(folder, "vae"), read_config(folder, "unet")
    image_size = check_image_size(image_size, unet_config, vae_config)
    prompt_length = settle_prompt_length(prompt_length, folder)
    vae = load_part(_AUTOENCODERS[vae_config["_class_name"]], folder, "vae", variant, dtype)
    unet = load_part(UNet2DConditionModel, folder, "unet", variant, dtype)
    width = unet.config.cross_attention_dim
    width = width if isinstance(width, int) else max(width)
    return Pipeline(
        vae.to(device),
        unet.to(device),
        read_noise_schedule(folder),
        image_size,
        prompt_length,
        width,
        folder,
        variant,
    )


def as_device(name: str) -> torch.device:
    """Returns the device of that name; for "auto" a GPU where there is one.

    Where several processes share a machine, "auto" and "cuda" mean the GPU of this one.

    Raises:
        ConfigError: when torch knows no such device, or there is no such GPU.
    """
    try:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        device = torch.device(own_gpu() if name == "cuda" else name)
        if device.type == "meta":
            raise RuntimeError("it has no values")
    except RuntimeError as error:
        raise ConfigError(
            f"Expected device to name a device but got {name!r}; auto, cpu, cuda and mps are some."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Expected the GPU that device={name} names but torch finds {torch.cuda.device_count()}; choose auto or cpu."
        )
    return device


def meta_model(kind: Any, folder: Path, part: str) -> Any:
    """Returns the model of class ``kind`` that a part's configuration describes, without memory for its weights.

    Raises:
        WeightsError: when the configuration describes none.
    """
    config: dict[str, Any] = read_config(folder, part)
    try:
        _check_counts(config)
        with torch.device("meta"):
            return kind.from_config(config)
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = in_one_line(error)
        raise WeightsError(
            f"Expected {folder / part / 'config.json'} to describe a {kind.__name__} but: {reason}; copy the folder again."
        ) from error


def _check_counts(config: dict[str, Any]) -> None:
    """Raises a :class:`ValueError` for larger numbers than any model has; many layers take hours to describe and all memory."""
    for name, value in config.items():
        most, counts = MOST_LAYERS if "layers" in name else LARGEST, [value]
        while any(isinstance(count, list) for count in counts):
            counts = [inner for count in counts for inner in (count if isinstance(count, list) else [count])]
        if any(isinstance(count, int) and count > most for count in counts):
            raise ValueError(f"{name} is {value!r:.80}, more than {most}")


def _check_amount(kind: Any, folder: Path, part: str, variant: str | None) -> None:
    """Raises a :class:`WeightsError` when a small file's configuration asks for a large model, before memory is taken for it."""
    described = sum(value.numel() for value in meta_model(kind, folder, part).state_dict().values())
    held = 0
    for file in weight_files(folder, part, variant):
        with safe_open(file, "pt") as weights:
            held += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    if described > 2 * held:
        raise WeightsError(
            f"Expected weights in {folder / part} that fit its config.json but it describes {described} values and the files hold "
            f"{held}; the folder mixes two models."
        )


def load_part(kind: Any, folder: Path, part: str, variant: str | None, dtype: torch.dtype) -> Any:
    """Returns a model that diffusers loads from a pipeline folder, frozen and in evaluation mode.

    Raises:
        WeightsError: when its weights are damaged, not finite, or not those that its configuration describes.
    """
    _check_amount(kind, folder, part, variant)
    try:
        module, info = kind.from_pretrained(
            folder,
            subfolder=part,
            variant=part_variant(folder, part, variant) or None,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        reason = in_one_line(error)
        raise WeightsError(
            f"Expected weights in {folder / part} that fit its config.json but: {reason}; the folder mixes two models."
        ) from error
    check_none_missing(info["missing_keys"], kind.__name__, folder / part, "the folder mixes two models.")
    check_finite(module.state_dict(), folder / part)
    return module.to(dtype).eval().requires_grad_(False)
