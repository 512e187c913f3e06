"""Weights of a UNet from a file beside its pipeline, such as those of CleanDIFT.

CleanDIFT (Stracke et al., CVPR 2025) trains the UNets of SD 1.5 and 2.1 to give noise-free images the features of noisy ones. Its
files ``cleandift_sd15_unet.safetensors`` and ``cleandift_sd21_unet.safetensors`` have the names and shapes of diffusers' UNets.
"""

import re
from pathlib import Path

from diffusers import UNet2DConditionModel
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import load_file

from distill.core.errors import WeightsError, in_one_line
from distill.core.weights import check_finite
from teacher.pipeline import meta_model
from teacher.pipeline_checks import check_tensors


def meta_unet(folder: Path) -> UNet2DConditionModel:
    """Returns the UNet that a pipeline's configuration describes, see :func:`teacher.pipeline.meta_model`."""
    return meta_model(UNet2DConditionModel, folder, "unet")


def locate_unet_weights(name: str) -> Path:
    """Returns the local file of ``name``: a safetensors file, or ``organisation/repository/file`` of the hub.

    Raises:
        WeightsError: when there is none, and for other kinds of files.
    """
    path = Path(name).expanduser()
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"Expected unet_weights to be a .safetensors file but got {name!r}; other kinds are not read."
        )
    if path.is_file():
        return path
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w./-]+)", name)
    if hub is None or ".." in name:
        raise WeightsError(f"Expected unet_weights to be a file but there is none at {name!r}; check the path.")
    try:
        return Path(hf_hub_download(hub[1], hub[2]))
    except (OSError, ValueError) as error:
        reason = in_one_line(error)
        raise WeightsError(
            f"Expected unet_weights to be a file, or one of the hub's, but {name!r} is no file here and could not be "
            f"downloaded ({reason}); check the name, or download it first."
        ) from error


def check_unet_weights(file: Path, unet: UNet2DConditionModel) -> None:
    """Raises a :class:`WeightsError` unless ``file`` holds the tensors of ``unet``: all of them, of these shapes, and no others."""
    check_tensors(file)
    with safe_open(file, "pt") as weights:
        given = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    wanted = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    wrong = {
        "are missing": sorted(wanted.keys() - given.keys()),
        "are unknown": sorted(given.keys() - wanted.keys()),
        "have another shape": sorted(key for key in wanted.keys() & given.keys() if wanted[key] != given[key]),
    }
    found = [f"{len(keys)} tensors {what}, such as {keys[0]}" for what, keys in wrong.items() if keys]
    if found:
        raise WeightsError(
            f"Expected in {file} the tensors of the model's UNet but {'; '.join(found)}; choose weights of the same architecture."
        )


def load_unet_weights(unet: UNet2DConditionModel, file: Path) -> None:
    """Replaces all weights of ``unet`` by those of a file that :func:`check_unet_weights` accepts.

    Raises:
        WeightsError: when a weight is NaN or infinite, or becomes so in the precision of ``unet``.
    """
    unet.load_state_dict(load_file(file), strict=True)
    check_finite(unet.state_dict(), file)
