"""What decides the answers of prompt optimisation besides the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from distill.errors import ConfigError, nearest

Noise = Literal["gaussian", "uniform"]
Queries = Literal["conditioned", "frozen"]
NullPrompt = Literal["empty", "zeros"]
Readout = Literal["argmax", "soft_argmax"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """Settings of prompt optimisation; the defaults suit the small model shipped with the project.

    Every field is part of a label's fingerprint. Lengths are fractions of the side of what the UNet sees, so that they
    carry over from one image size to another.

    Attributes:
        embeddings: prompts per query, from as many random starts.
        steps: steps of Adam.
        lr: its learning rate.
        timestep: diffusion time at which the source is looked at; the value, not an index.
        locate_timestep: the same for the target; without it, ``timestep``.
        noise: "gaussian" is what the UNet was trained with; "uniform" on [0, 1) is what the paper's code draws.
        crops: crops of the target per prompt. From four on the first four are the corners; with fewer the first is the
            whole image, so that every pixel is seen either way. The others are around the maximum found so far.
        crop_ratio: side of a crop.
        crop_margin: how far off a crop's border the query is kept where possible.
        crop_pool: crops an image is encoded at, corners included. The paper draws fresh ones instead, each encoded
            anew; a pool costs no accuracy worth the name and is shared by all points, prompts and steps.
        noise_draws: how often noise is drawn for each crop of the pool; without it, anew at every step, as in the paper.
            Frozen queries want a number, because each draw is one pass through the UNet.
        crops_per_step: crops that each prompt sees in one step; more make the gradient less noisy and cost as much.
        sigma: standard deviation of the Gaussian to be lit up. The paper's 27.98 px of 512.
        layers: which cross-attention to read, see :mod:`teacher.attention`.
        queries: "conditioned" runs every prompt through the UNet, as in the paper; "frozen" runs the UNet once per crop
            and lets prompts act on the keys alone, which makes a step hundreds of times cheaper and is not the same.
        null_prompt: what the UNet is given when queries are frozen: the text encoder's empty prompt, or zeros.
        readout: "argmax" of the map's cells, or "soft_argmax" in a window around it for an answer between the cells.
        readout_temperature: of the soft-argmax, relative to the map's peak.
        layer_temperature: of the softmax over all pixels that each layer goes through before the layers are averaged;
            the paper's is 1. Without it the layers are averaged as they are.
        map_side: cells a side of the grid on which maps are compared and accumulated; without it, twice the latents'.
        heatmap_side: cells a side of the heatmap that is returned; without it, half of map_side.
        precision: "fp32", or "bf16" for weights and activations; the maps are computed in fp32 in any case.
        seed: of all that is random; with the image's content it decides starts, noise and crops.
    """

    embeddings: int = 2
    steps: int = 50
    lr: float = 0.05
    timestep: int = 200
    locate_timestep: int | None = None
    noise: Noise = "gaussian"
    crops: int = 3
    crop_ratio: float = 0.93165
    crop_margin: float = 0.15
    crop_pool: int = 8
    noise_draws: int | None = None
    crops_per_step: int = 1
    sigma: float = 27.98 / 512
    layers: Sequence[str] = ("up@1/4", "up@1/2")
    queries: Queries = "conditioned"
    null_prompt: NullPrompt = "empty"
    readout: Readout = "soft_argmax"
    readout_temperature: float = 0.1
    layer_temperature: float | None = None
    map_side: int | None = None
    heatmap_side: int | None = None
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks all fields; what is wrong is reported together in one :class:`ConfigError`."""
        object.__setattr__(self, "layers", tuple(self.layers))
        wrong = [
            f"{name} in {list(choices)} (got {getattr(self, name)!r})"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                wrong.append(f"{name} in [{low:g}, {high:g}] (got {value!r})")
        if not wrong and self.crops > self.crop_pool:
            wrong.append(f"crops to be at most crop_pool (got {self.crops} and {self.crop_pool})")
        if not wrong and self.crops_per_step > self.crop_pool:
            wrong.append(f"crops_per_step to be at most crop_pool (got {self.crops_per_step} and {self.crop_pool})")
        if wrong:
            raise ConfigError(f"Expected {'; '.join(wrong)}; change these settings of prompt optimisation.")

    @classmethod
    def of(cls, **values: Any) -> "Settings":
        """Builds settings from keywords; a name that there is not raises a :class:`ConfigError` with the nearest."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(f"Expected a setting of prompt optimisation but got {name!r}; {nearest(name, names)}")
        return cls(**values)


_CHOICES = {
    "noise": get_args(Noise),
    "queries": get_args(Queries),
    "null_prompt": get_args(NullPrompt),
    "readout": get_args(Readout),
    "precision": get_args(Precision),
}
_TINY = 1e-9
_RANGES = {
    "embeddings": (1, math.inf),
    "steps": (1, math.inf),
    "lr": (_TINY, math.inf),
    "timestep": (0, math.inf),
    "locate_timestep": (0, math.inf),
    "crops": (1, math.inf),
    "crop_ratio": (0.1, 1),
    "crop_margin": (0, 0.5),
    "crop_pool": (4, math.inf),
    "noise_draws": (1, math.inf),
    "crops_per_step": (1, math.inf),
    "sigma": (_TINY, 1),
    "readout_temperature": (_TINY, math.inf),
    "layer_temperature": (_TINY, math.inf),
    "map_side": (1, math.inf),
    "heatmap_side": (1, math.inf),
}
