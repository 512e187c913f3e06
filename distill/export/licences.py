"""Licences of a teacher's weights, which its student inherits.

What is not known is said to be so. Nothing here is legal advice; the licence itself decides.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.core.errors import WeightsError
from distill.export.student_file import read_about

UNKNOWN = "not known here; see where it came from"
_RAIL, _RAIL_PLUS, _TURBO = "CreativeML Open RAIL-M", "CreativeML Open RAIL++-M", "Stability AI's (sai-nc-community)"
_COMMUNITY = "Stability AI Community License, see its page for commercial use"
WEIGHTS: Mapping[str, str] = {
    "sd-mini": "Apache-2.0",  # of this project
    "stable-diffusion-v1-4": _RAIL,
    "stable-diffusion-v1-5": _RAIL,
    "stable-diffusion-2-1": _RAIL_PLUS,
    "stable-diffusion-2-1-base": _RAIL_PLUS,
    "stable-diffusion-xl-base-1.0": _RAIL_PLUS,
    "sdxl-turbo": f"{_TURBO}, non-commercial research; see its page for other use",
    "sd-turbo": f"{_TURBO}, non-commercial research; see its page for other use",  # as a copy of the weights says
    "cleandift_sd15_unet.safetensors": f"MIT, made from Stable Diffusion 1.5: {_RAIL}",
    "cleandift_sd21_unet.safetensors": f"MIT, made from Stable Diffusion 2.1: {_RAIL_PLUS}",
    "stable-diffusion-3-medium": _COMMUNITY,
    "stable-diffusion-3-medium-diffusers": _COMMUNITY,
    "stable-diffusion-3.5-medium": _COMMUNITY,
    "stable-diffusion-3.5-large": _COMMUNITY,
    "FLUX.1-schnell": "Apache-2.0",  # as the page of weights that derive from it says
    "FLUX.1-dev": "FLUX.1 [dev] Non-Commercial License",
    **{f"vit_{size}_patch14_dinov2": "Apache-2.0" for size in ("small", "base", "large", "giant")},  # as timm says
    **{f"vit_{size}_patch16_dinov3": "DINOv3 License" for size in ("small", "base", "large")},  # as timm says
    "mobilenetv2_100": "Apache-2.0",  # as timm says
    **{f"tf_efficientnet_lite{size}": "Apache-2.0" for size in range(5)},  # as timm says
    **{
        f"tf_efficientnet_lite{size}.safetensors": "Apache-2.0" for size in range(3)
    },  # which docs/efficientnet_lite.py writes
}
"""Of pipelines and weights, by the last part of their file, folder or hub id, and of timm's own weights, by the model's name.

As their pages of the Hugging Face hub said in 2026, or, where a comment says so, another page; a page may have changed since.
"""


def teacher_licence(teacher: Mapping[str, Any]) -> str | None:
    """Returns the licences of all weights that a teacher's configuration names, each behind its name; None for none."""
    return "; ".join(f"{name}: {licence}" for name, licence in dict(_weights(teacher)).items()) or None


def weights_licence(model: str) -> str:
    """Returns the licence of weights, by the name of their file or folder, by their hub id, or by a timm model's name.

    A folder of the hub's cache (``models--owner--name``) or in it is known by the name of the repository, a timm model with a tag
    (``name.tag``) by its name.
    """
    name = model.rstrip("/").rpartition("/")[2]
    cached = [part for part in model.split("/") if part.startswith("models--")]
    if cached:
        name = cached[-1].rpartition("--")[2]
    return WEIGHTS.get(name) or (UNKNOWN if _is_file(name) else WEIGHTS.get(name.partition(".")[0], UNKNOWN))


def _is_file(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".ckpt", ".pt", ".pth"))


def _weights(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and licences of all weights that a teacher's configuration names, the outer ones first."""
    found = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            found += _weights(value)
        elif key == "model" and isinstance(value, str):
            found.append((value.rstrip("/").rpartition("/")[2], weights_licence(value)))
        elif key == "path" and isinstance(value, str):
            found.append((value.rpartition("/")[2], inherited_licence(value)))
        elif key in ("unet_weights", "weights", "repo") and isinstance(value, str):
            name = str(node.get("backbone", value)).partition(".")[0] if value == "pretrained" else value
            found.append((name.rpartition("/")[2], weights_licence(name)))
    return found


def inherited_licence(path: str) -> str:
    """Returns what a student's file, as a teacher or to start from, says of the licences that it has inherited itself."""
    told: Mapping[str, Any] = {}
    if Path(path).exists():  # a file, or the folder of a bundle
        with suppress(WeightsError):
            told = read_about(path).get("licences", {})
    if not told:
        return weights_licence(path)
    return "made from " + ", ".join(f"{what} ({licence})" for what, licence in told.items())
