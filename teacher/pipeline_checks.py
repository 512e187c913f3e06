"""Whether a pipeline folder is one that the teacher can read; answered from its configuration, before weights load."""

import inspect
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.core.errors import ConfigError, WeightsError, in_one_line
from distill.core.numbers import is_number, is_whole
from distill.core.weights import check_readable
from teacher.pipeline_files import CONFIGS, missing_files, read_config, variants, weight_files

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
UNET = "UNet2DConditionModel"
MOST_TIMESTEPS = 100_000
LONGEST_PROMPT = 10_000
_PARTS = ("unet", "vae")
_FLOATING = {"F16", "F32", "F64", "BF16"}
_FAMILY = "choose a pipeline of the family of Stable Diffusion 1.x, 2.x, SDXL"


def check_folder(folder: Path, variant: str | None = None) -> None:
    """Checks all that can be known of a pipeline folder without loading it.

    Args:
        folder: of the pipeline.
        variant: of the weights, such as "fp16"; without it, the plain files or the only variant there is.

    Raises:
        WeightsError: when files are missing or damaged, or describe a model that is not of the family.
    """
    if (folder / "scheduler" / CONFIGS["scheduler"]).is_file():
        read_noise_schedule(folder)
    _check_files(folder, variant)
    unet, vae = (read_config(folder, part) for part in _PARTS)
    for part, config in (("unet", unet), ("vae", vae)):
        check_not_quantised(config, folder / part)
    if unet.get("_class_name") != UNET:
        raise WeightsError(
            f"Expected a UNet of class {UNET} in {folder / 'unet'} but got {unet.get('_class_name')}; {_FAMILY}."
        )
    if vae.get("_class_name") not in AUTOENCODERS:
        raise WeightsError(
            f"Expected a VAE of class {' or '.join(AUTOENCODERS)} in {folder / 'vae'} but got {vae.get('_class_name')}."
        )
    _check_conditioning(unet, folder)
    _check_channels(unet, vae, folder)
    latent_statistics(vae, folder)
    check_scale(vae, folder)
    for file in (file for part in _PARTS for file in weight_files(folder, part, variant)):
        check_tensors(file)


def _check_files(folder: Path, variant: str | None) -> None:
    if missing := missing_files(folder, (*_PARTS, "scheduler"), variant):
        raise WeightsError(
            f"Expected a pipeline as diffusers saves it in {folder} but it lacks {', '.join(missing)}; copy the whole "
            "folder, with its weights in safetensors. Of a hub id that holds variants only, name one: teacher.variant=fp16."
        )
    check_variant(folder, _PARTS, variant)


def check_variant(folder: Path, parts: Iterable[str], variant: str | None) -> None:
    """Raises a :class:`WeightsError` when no part has weights of the variant that is asked for."""
    if variant and not any(variant in variants(folder, part) for part in parts):
        raise WeightsError(
            f"Expected weights of variant {variant!r} in {folder} but there are plain files only; leave variant out."
        )


def check_not_quantised(config: dict[str, Any], part: Path) -> None:
    """Raises a :class:`WeightsError` for a part whose configuration asks a quantisation library to build it."""
    if config.get("quantization_config") is not None:
        raise WeightsError(
            f"Expected plain weights in {part} but its config.json has a quantization_config; choose weights that are "
            "not quantised."
        )


def check_tensors(file: Path, others: tuple[str, ...] = ()) -> None:
    """Checks that a file of weights is whole and not quantised, by its header.

    Args:
        file: in safetensors.
        others: kinds of tensors that may be there beside floating point.

    Raises:
        WeightsError: when it is cut, or holds tensors of other kinds.
    """
    check_readable(file)
    try:
        with safe_open(file, "pt") as weights:
            kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"Expected whole weights in {file} but it is truncated or damaged ({error}); copy it again."
        ) from error
    strange = sorted(f"{key} ({kind})" for key, kind in kinds.items() if kind not in {*_FLOATING, *others})
    if strange:
        raise WeightsError(
            f"Expected weights of 16, 32 or 64 bit floating point in {file} but {len(strange)} tensors are not, first "
            f"{strange[0]}; choose weights that are not quantised."
        )


def read_noise_schedule(folder: Path) -> Tensor:
    """Returns the share of signal power (T,) at each timestep, from the betas in the scheduler's configuration.

    Raises:
        WeightsError: for flow matching, and for schedulers that are not described by betas.
    """
    config = read_config(folder, "scheduler")
    name = config.get("_class_name")
    flow = (
        "FlowMatch" in str(name) or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    )
    if flow:
        raise WeightsError(
            f"Expected noise that grows by betas in {folder / 'scheduler'} but {name} is of flow matching, as in SD3 and "
            f"FLUX; {_FAMILY}."
        )
    takes_betas = "beta_start" in inspect.signature(_scheduler_class(name, folder)).parameters
    told = {
        key: config[key]
        for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        if config.get(key) is not None
    }
    try:
        if not takes_betas:
            raise ValueError("it takes none")
        if not told.get("trained_betas") and not {"beta_start", "beta_end", "beta_schedule"} <= set(told):
            raise ValueError("none are named")
        if not told.get("trained_betas") and not 0 <= told["beta_start"] < told["beta_end"] <= 1:
            raise ValueError(f"beta_start={told['beta_start']} is not below beta_end={told['beta_end']}")
        if not 2 <= told.get("num_train_timesteps", 1000) <= MOST_TIMESTEPS:
            raise ValueError(f"num_train_timesteps={told['num_train_timesteps']} is none of 2 to {MOST_TIMESTEPS}")
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        betas = DDIMScheduler(**told, rescale_betas_zero_snr=zero_snr).betas
        if not ((betas >= 0) & (betas <= 1)).all() or len(betas) < 2 or not (betas > 0).any():
            raise ValueError("they are not all in [0, 1], or all 0")
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise WeightsError(
            f"Expected the betas of the noise in {folder / 'scheduler' / CONFIGS['scheduler']} but got {name} of which "
            f"they cannot be made ({in_one_line(error, 150)}); {_FAMILY}."
        ) from error
    return torch.cumprod(1 - betas, 0)


def _scheduler_class(name: Any, folder: Path) -> type:
    """Returns the scheduler of diffusers that a configuration names."""
    found = (
        getattr(diffusers, name, None) if isinstance(name, str) and re.fullmatch(r"[A-Z]\w+Scheduler", name) else None
    )
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise WeightsError(
            f"Expected a scheduler of diffusers as _class_name in {folder / 'scheduler' / CONFIGS['scheduler']} but got "
            f"{name!r}; {_FAMILY}."
        )
    return found


def latent_statistics(vae: dict[str, Any], folder: Path) -> tuple[Tensor, Tensor] | None:
    """Returns the mean and deviation (1, C, 1, 1) of the latents' channels that a VAE's configuration names, if it does.

    Raises:
        WeightsError: when there is one without the other, they are not as many as there are channels, or a deviation is not
            positive.
    """
    channels, found = vae.get("latent_channels", 4), []
    there = [name for name in ("latents_mean", "latents_std") if vae.get(name) is not None]
    if not there:
        return None
    if len(there) == 1:
        raise WeightsError(
            f"Expected latents_mean and latents_std, or neither, in {folder / 'vae' / 'config.json'} but got {there[0]} alone, "
            "which diffusers does not use; add the other, or remove it."
        )
    for name in there:
        values = vae[name]
        numbers = isinstance(values, list) and all(map(_is_number, values))
        if not numbers or len(values) != channels or (name == "latents_std" and min(values) <= 0):
            positive = " that are positive" if name == "latents_std" else ""
            raise WeightsError(
                f"Expected {name} in {folder / 'vae' / 'config.json'} to hold {channels} numbers{positive} but got "
                f"{values!r}; copy the folder again."
            )
        found.append(torch.tensor(values, dtype=torch.float32)[None, :, None, None])
    return found[0], found[1]


def check_scale(vae: dict[str, Any], folder: Path) -> None:
    """Raises a :class:`WeightsError` for a scale or shift of the latents that is no number, which would make all latents NaN or 0."""
    for name, usual, positive in (("scaling_factor", 0.18215, True), ("shift_factor", None, False)):
        value: Any = vae.get(name, usual)
        if value is None and not positive:
            continue
        if not (_is_number(value) and (value > 0 or not positive)):
            raise WeightsError(
                f"Expected {name} in {folder / 'vae' / 'config.json'} to be a finite number{' that is positive' * positive} but "
                f"got {value!r}; copy the folder again."
            )


def _is_number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _check_conditioning(unet: dict[str, Any], folder: Path) -> None:
    wanted = {
        name: unet.get(name)
        for name, known in (
            ("class_embed_type", (None,)),
            ("num_class_embeds", (None,)),
            ("encoder_hid_dim_type", (None,)),
            ("time_cond_proj_dim", (None,)),
            ("addition_embed_type", (None, "text_time")),
            ("dual_cross_attention", (None, False)),
        )
        if unet.get(name) not in known
    }
    if wanted:
        raise WeightsError(
            f"Expected a UNet that is conditioned on a prompt and a timestep in {folder / 'unet'} but it also wants "
            f"{wanted}; choose a text-to-image pipeline of the Stable Diffusion family."
        )
    sizes = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    unsaid = [name for name in sizes if unet.get("addition_embed_type") == "text_time" and not unet.get(name)]
    if unsaid:
        raise WeightsError(
            f"Expected the second conditioning of SDXL to be described in {folder / 'unet' / 'config.json'} but "
            f"{' and '.join(unsaid)} are missing; copy the folder again."
        )


def _check_channels(unet: dict[str, Any], vae: dict[str, Any], folder: Path) -> None:
    for part, widths in (("unet", unet.get("block_out_channels")), ("vae", vae_channels(vae))):
        if not isinstance(widths, list) or not widths or not all(isinstance(w, int) and w > 0 for w in widths):
            raise WeightsError(
                f"Expected the widths of the blocks in {folder / part / 'config.json'} to be positive whole numbers but "
                f"got {widths!r}; copy it again."
            )
    latents, reads = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if latents != reads:
        raise WeightsError(
            f"Expected a UNet that reads the VAE's latents of {latents} channels in {folder / 'unet'} but it reads {reads}, "
            "as for inpainting, depth or editing by instruction; choose a text-to-image pipeline."
        )


def vae_channels(vae: dict[str, Any]) -> Any:
    """The widths of an autoencoder's blocks, one a resolution."""
    return vae.get("block_out_channels") or vae.get("encoder_block_out_channels")


def latent_factor(vae: dict[str, Any]) -> int:
    """Returns how many pixels of an image's side a cell of its latents stands for."""
    return 2 ** (len(vae_channels(vae)) - 1)


def check_sizes(
    folder: Path,
    image_size: int | None,
    prompt_length: int | None,
    timesteps: Iterable[int | None] = (),
    point_tokens: int = 1,
) -> None:
    """Checks the amounts that depend on the model, by its configuration.

    Args:
        folder: of the pipeline, see :func:`check_folder`.
        image_size: side of the images, px; None for what the UNet was trained at.
        prompt_length: tokens of a prompt; None for what the tokenizer says, which is read when the weights are.
        timesteps: diffusion times; None for none.
        point_tokens: tokens of a prompt, after its start, that stand for points.

    Raises:
        ConfigError: for one that this model does not take.
    """
    check_image_size(image_size, read_config(folder, "unet"), read_config(folder, "vae"))
    if prompt_length is not None or point_tokens > 1:
        length = settle_prompt_length(prompt_length, folder)
        if point_tokens >= length:
            raise ConfigError(
                f"Expected at most {length - 1} points in a prompt of {length} tokens, whose first one is its start, but got "
                f"{point_tokens}; lower points_per_prompt, or raise prompt_length."
            )
    known = len(read_noise_schedule(folder))
    for timestep in timesteps:
        if timestep is not None and timestep >= known:
            raise ConfigError(f"Expected timestep to be below {known} for this model but got {timestep}; lower it.")


def check_image_size(wanted: int | None, unet: dict[str, Any], vae: dict[str, Any]) -> int:
    """Returns the side of the images in px: ``wanted``, or what the UNet was trained at.

    Raises:
        ConfigError: when it is not known or no whole number, or the latents cannot be halved evenly through the UNet.
    """
    factor = latent_factor(vae)
    if wanted is None and not isinstance(unet.get("sample_size"), int):
        raise ConfigError("Expected image_size because the UNet's config.json has no sample_size; name it in pixels.")
    size = unet["sample_size"] * factor if wanted is None else wanted
    unit = factor * 2 ** (len(unet["block_out_channels"]) - 1)
    if not is_whole(size) or size <= 0 or size % unit:
        raise ConfigError(f"Expected image_size to be a multiple of {unit} for this model but got {size!r}; round it.")
    return size


def settle_prompt_length(wanted: int | None, folder: Path) -> int:
    """Returns the tokens of a prompt: ``wanted``, or what the pipeline's tokenizer says.

    Raises:
        ConfigError: when it is not known, or no whole number from 2 on.
    """
    if wanted is None:
        return tokenizer_length(folder)
    if not is_whole(wanted) or not 1 < wanted < LONGEST_PROMPT:
        raise ConfigError(
            f"Expected prompt_length to be a whole number from 2 to {LONGEST_PROMPT - 1} but got {wanted!r}; null takes the "
            "tokenizer's."
        )
    return wanted


def tokenizer_length(folder: Path) -> int:
    """Returns the tokens of a prompt that the pipeline's tokenizer names.

    Raises:
        ConfigError: when it names none.
    """
    file = folder / "tokenizer" / CONFIGS["tokenizer"]
    length = read_config(folder, "tokenizer").get("model_max_length") if file.is_file() else None
    if not isinstance(length, int) or not 1 < length < LONGEST_PROMPT:  # an unset length is written as 1e30
        raise ConfigError(f"Expected the prompt's length in {file} but found none; name it with prompt_length.")
    return length
