"""The parts of a Stable Diffusion pipeline folder that prompt optimisation needs: VAE, UNet and noise schedule.

Neither text encoder nor tokenizer is needed, because prompts are optimised as embeddings. Widths, sizes and the
prompt's length are read from the folder.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError, WeightsError

_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
_CONFIGS = {"unet": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
_HUB_FILES = [
    "*/*.json",
    *(f"{part}/*model{shard}.safetensors" for part in ("unet", "vae") for shard in ("", "-*-of-*")),
]


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
    """

    vae: AutoencoderKL | AutoencoderTiny
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    image_size: int
    prompt_length: int
    prompt_width: int
    folder: Path

    def squash(self, image: Tensor) -> Tensor:
        """Returns ``image`` (3, H, W) in [0, 1] as the model sees it: (1, 3, S, S), on its device."""
        size = self.image_size
        resized = image[None].to(self.vae.device, torch.float32)
        if resized.shape[-2:] != (size, size):
            resized = F.interpolate(resized, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return resized.clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the latents (B, C, h, w) of ``images`` (B, 3, S, S) in [0, 1]: posterior mean, scaled as trained on."""
        images = images.to(self.vae.dtype) * 2 - 1
        config = self.vae.config
        if isinstance(self.vae, AutoencoderTiny):
            return self.vae.encode(images).latents * config.scaling_factor
        latents = self.vae.encode(images).latent_dist.mean
        return (latents - (config.shift_factor or 0.0)) * config.scaling_factor

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Returns ``latents`` diffused to ``timestep`` with ``noise`` of the same shape."""
        signal = float(self.alphas_cumprod[timestep])
        return signal**0.5 * latents + (1 - signal) ** 0.5 * noise.to(latents)


def load_pipeline(
    model: str,
    image_size: int | None = None,
    prompt_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Pipeline:
    """Loads what is needed of a pipeline, frozen and in evaluation mode.

    Args:
        model: a pipeline folder as diffusers saves it, or the id of one on the Hugging Face hub.
        image_size: side of the images in px; without it, what the UNet was trained at.
        prompt_length: tokens of a prompt; without it, what the pipeline's tokenizer says.
        dtype: of the weights in memory.
        device: where they are.

    Raises:
        WeightsError: when parts are missing, truncated or of another architecture; before anything is loaded.
        ConfigError: when the prompt's length is not known or the image size does not suit the UNet.
    """
    folder = locate_folder(model)
    check_folder(folder)
    vae_config, unet_config = (json.loads((folder / part / "config.json").read_text()) for part in ("vae", "unet"))
    _check_conditioning(unet_config, folder)
    autoencoder = _autoencoder_class(vae_config, folder)
    image_size = _image_size(image_size, unet_config, vae_config)
    prompt_length = prompt_length or _tokenizer_length(folder)
    vae = _load_part(autoencoder, folder, "vae", dtype)
    unet = _load_part(UNet2DConditionModel, folder, "unet", dtype)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    width = unet.config.cross_attention_dim
    width = width if isinstance(width, int) else max(width)
    return Pipeline(vae.to(device), unet.to(device), scheduler.alphas_cumprod, image_size, prompt_length, width, folder)


def locate_folder(model: str) -> Path:
    """Returns the local folder of ``model``, a folder or a hub id; downloads what is needed in the second case."""
    if Path(model).is_dir():
        return Path(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise WeightsError(f"Expected a pipeline folder or a hub id as model but found no folder {model!r}; check it.")
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"Expected a pipeline folder or a hub id as model but {model!r} is no folder here and could not be "
            f"downloaded ({reason}); check the name, or download it first."
        ) from error


def check_folder(folder: Path) -> None:
    """Raises a :class:`WeightsError` that lists all that is missing or truncated of the parts that are needed."""
    missing = [f"{part}/{name}" for part, name in _CONFIGS.items() if not (folder / part / name).is_file()]
    missing += [f"{part}/*.safetensors" for part in ("unet", "vae") if not _weight_files(folder, part)]
    if missing:
        raise WeightsError(
            f"Expected a pipeline as diffusers saves it in {folder} but it lacks {', '.join(missing)}; copy the whole "
            "folder, with its weights in safetensors."
        )
    for file in (file for part in ("unet", "vae") for file in _weight_files(folder, part)):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"Expected whole weights in {file} but it is truncated or damaged ({error}); copy it again."
            ) from error


def as_device(name: str) -> torch.device:
    """Returns the device of that name; for "auto" a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def weights_digest(folder: Path, with_text: bool) -> str:
    """Returns a hash of UNet, VAE and noise schedule, and of the text encoder where it decides answers too.

    Where a part was read from and by which version it was written, which diffusers keeps in a part's configuration, make
    no difference.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = ("unet", "vae", *(("text_encoder",) if with_text else ()))
    for file in (folder / "scheduler" / _CONFIGS["scheduler"], *(folder / part / "config.json" for part in parts)):
        config = json.loads(file.read_text(encoding="utf-8"))
        told = {key: value for key, value in config.items() if key not in ("_name_or_path", "_diffusers_version")}
        digest.update(json.dumps(told, sort_keys=True).encode())
    for file in (file for part in parts for file in _weight_files(folder, part)):
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def _weight_files(folder: Path, part: str) -> list[Path]:
    """The files that diffusers reads by default: no half-precision or EMA variants that may lie beside them."""
    return sorted(
        file
        for file in (folder / part).glob("*.safetensors")
        if re.fullmatch(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?", file.stem)
    )


def _load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    try:
        module, info = kind.from_pretrained(
            folder,
            subfolder=part,
            torch_dtype=dtype,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"Expected weights in {folder / part} that fit its config.json but: {reason}; the folder mixes two models."
        ) from error
    if info["missing_keys"]:
        raise WeightsError(
            f"Expected all weights of {kind.__name__} in {folder / part} but {len(info['missing_keys'])} are missing, "
            f"first {info['missing_keys'][0]!r}; the folder mixes two models."
        )
    return module.eval().requires_grad_(False)


def _autoencoder_class(config: dict, folder: Path) -> type:
    name = config.get("_class_name")
    if name not in _AUTOENCODERS:
        raise WeightsError(f"Expected a VAE of class {' or '.join(_AUTOENCODERS)} in {folder / 'vae'} but got {name}.")
    return _AUTOENCODERS[name]


def _check_conditioning(unet: dict, folder: Path) -> None:
    wanted = {
        name: unet.get(name)
        for name, known in (
            ("class_embed_type", (None,)),
            ("encoder_hid_dim_type", (None,)),
            ("time_cond_proj_dim", (None,)),
            ("addition_embed_type", (None, "text_time")),
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


def _image_size(wanted: int | None, unet: dict, vae: dict) -> int:
    """The side in px, checked: the latents must halve evenly through the UNet."""
    channels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels", ())
    factor = 2 ** (len(channels) - 1)
    if wanted is None and not isinstance(unet.get("sample_size"), int):
        raise ConfigError("Expected image_size because the UNet's config.json has no sample_size; name it in pixels.")
    size = wanted or unet["sample_size"] * factor
    unit = factor * 2 ** (len(unet["block_out_channels"]) - 1)
    if size <= 0 or size % unit:
        raise ConfigError(f"Expected image_size to be a multiple of {unit} for this model but got {size}; round it.")
    return size


def _tokenizer_length(folder: Path) -> int:
    file = folder / "tokenizer" / "tokenizer_config.json"
    length = json.loads(file.read_text()).get("model_max_length") if file.is_file() else None
    if not isinstance(length, int) or not 1 < length < 10_000:  # an unset length is written as 1e30
        raise ConfigError(f"Expected the prompt's length in {file} but found none; name it with prompt_length.")
    return length
