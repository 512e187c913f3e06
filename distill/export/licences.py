"""Licences of a teacher's weights, which its student inherits.

What is not known is said to be so. Nothing here is legal advice; the licence itself decides.
"""

from collections.abc import Mapping
from typing import Any

UNKNOWN = "not known here; see where it came from"
WEIGHTS: Mapping[str, str] = {
    "sd-mini": "Apache-2.0",
    "stable-diffusion-v1-4": "CreativeML Open RAIL-M",
    "stable-diffusion-v1-5": "CreativeML Open RAIL-M",
    "stable-diffusion-2-1": "CreativeML Open RAIL++-M",
    "stable-diffusion-2-1-base": "CreativeML Open RAIL++-M",
    "stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M",
    "FLUX.1-schnell": "Apache-2.0",
    "FLUX.1-dev": "FLUX.1 [dev] Non-Commercial License",
}
"""Of pipelines, by the last part of their folder or hub id, as their model cards say."""


def teacher_licence(teacher: Mapping[str, Any]) -> str | None:
    """Returns the licences of all weights that a teacher's configuration names, each behind its name; None for none."""
    return "; ".join(f"{name}: {licence}" for name, licence in dict(_weights(teacher)).items()) or None


def weights_licence(model: str) -> str:
    """Returns the licence of a pipeline's weights, by the name of its folder or hub id."""
    return WEIGHTS.get(model.rstrip("/").rpartition("/")[2], UNKNOWN)


def _weights(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and licences of all weights that a teacher's configuration names, the outer ones first."""
    found = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            found += _weights(value)
        elif key == "model" and isinstance(value, str):
            found.append((value.rstrip("/").rpartition("/")[2], weights_licence(value)))
        elif key in ("unet_weights", "weights", "path", "repo") and isinstance(value, str):
            name = str(node.get("backbone", value)) if value == "pretrained" else value
            found.append((name.rpartition("/")[2], UNKNOWN))
    return found
