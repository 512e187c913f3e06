"""What decides the answers of prompt optimisation besides the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from distill.core.errors import ConfigError, nearest

Noise = Literal["gaussian", "uniform"]
CropSource = Literal["pool", "fresh"]
CropEdges = Literal["exact", "pixels"]
TargetCells = Literal["centres", "corners"]
Heads = Literal["all", "upper"]
Queries = Literal["conditioned", "frozen"]
NullPrompt = Literal["empty", "zeros"]
Start = Literal["random", "query"]
Sides = Literal["ignore", "mirror", "compete"]
Readout = Literal["argmax", "subpixel", "soft_argmax", "windowed_soft_argmax"]
Confidence = Literal["peak_mass", "peak", "entropy", "spread", "cycle", "mirror", "second_look"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Settings:
    """Settings of prompt optimisation; the defaults suit the small model shipped with the project.

    Every field is part of a label's fingerprint. Lengths are fractions of the side of what the UNet sees, so that they
    carry over from one image size to another. "Released" is what the paper's code does.

    Attributes:
        embeddings: prompts per query, from as many random starts.
        steps: steps of Adam.
        lr: its learning rate.
        timestep: diffusion time at which the source is looked at; the value, not an index.
        locate_timestep: the same for the target; without it, ``timestep``, so that the prompt is used where it was made.
            Released: 140 and 40.
        noise: "gaussian" is what the UNet was trained with; "uniform" on [0, 1) is what the released code draws.
        crops: crops of the target per prompt. From four on the first four are the corners; with fewer the first is the
            whole image, so that every pixel is seen either way. The others are around the maximum found so far.
        crop_source: "pool" draws from crops that are encoded once and shared by all points, prompts and steps; "fresh"
            encodes a new crop for every prompt and step, as released, for about a VAE encoding per UNet pass.
        crop_edges: "exact" cuts where the crop lies; "pixels" rounds its place and size down to whole pixels and divides
            a point's place in it by the crop's width for both axes, as released (images are square there and here).
        crop_ratio: side of a crop.
        crop_margin: how far off a crop's border the query is kept where possible.
        crop_pool: crops an image is encoded at, corners included, with ``crop_source="pool"``.
        noise_draws: how often noise is drawn for each crop of the pool; without it, anew at every step, as in the paper.
            Frozen queries want a number, because each draw is one pass through the UNet.
        crops_per_step: crops that each prompt sees in one step; more make the gradient less noisy and cost as much.
        sigma: standard deviation of the Gaussian to be lit up. The paper's 27.98 px of 512.
        target_cells: where the cells of the Gaussian lie, "centres" for j + 0.5, or "corners" for j, as released, which
            is half a cell off the j + 0.5 at which the maximum is reported.
        layers: which cross-attention to read, see :mod:`teacher.attention`.
        heads: "all" are averaged, or the "upper" half of them, which is all that the released code stores.
        queries: "conditioned" runs every prompt through the UNet, as in the paper; "frozen" runs the UNet once per crop
            and lets prompts act on the keys alone, which makes a step hundreds of times cheaper and is not the same.
        null_prompt: what the UNet is given when queries are frozen: the text encoder's empty prompt, or zeros.
        start: "random" draws all tokens from N(0, 1); "query" solves for the token that the layers' projections turn
            into the features at the query point, which starts close to the answer.
        early_stop: a prompt is done when ten steps lower its loss by less than this share; without it, all steps are
            taken, which costs time but no decision.
        points_per_prompt: points of an image that share a prompt as its tokens 1, 2, ...; more are cheaper and compete
            with each other, and an answer then depends on the company it was asked in.
        sides: what is done about left and right. "ignore": nothing, as in the paper; "mirror": the target's map is
            weighed against the one of its mirror image, where a symmetric twin lights up instead; "compete": a second
            token takes the place where the prompt lights up in the mirrored source, and draws the first one's attention
            off it.
        consensus: how much the cells around the query point have to say about its match, as the power to which their
            votes are raised before they multiply the map, see :mod:`teacher.neighbours`; 0 for nothing, as in the paper.
        consensus_reach: standard deviation of a neighbour's weight by its distance.
        consensus_mirror: whether the target is looked at in the mirror too, and the look that agrees better is taken.
        readout: "argmax", the highest cell's centre, as released; "subpixel", the vertex of the parabolas through it and
            its neighbours; "soft_argmax", the mean over all cells; "windowed_soft_argmax", the mean around the maximum.
        readout_temperature: of the two soft ones, relative to the map's peak.
        layer_temperature: of the softmax over all pixels that each layer goes through before the layers are averaged;
            the paper's is 1. Without it the layers are averaged as they are.
        confidence: what it is made of, one name or several, whose geometric mean is taken; see
            :mod:`teacher.confidence`. "cycle" and "mirror" cost further passes, "second_look" a pass for each image, and
            it wants ``consensus``.
        map_side: cells a side of the grid on which maps are compared and accumulated, or "image" for the image's pixels,
            as released; without it, twice the latents', which loses nothing because maps are coarser.
        heatmap_side: cells a side of the heatmap that is returned; without it, half of map_side.
        precision: "fp32", or "bf16" or "fp16" for weights and activations; the maps are computed in fp32 in any case.
        seed: of all that is random; with the image's content it decides starts, noise and crops.
    """

    embeddings: int = 2
    steps: int = 50
    lr: float = 0.05
    timestep: int = 200
    locate_timestep: int | None = None
    noise: Noise = "gaussian"
    crops: int = 3
    crop_source: CropSource = "pool"
    crop_edges: CropEdges = "exact"
    crop_ratio: float = 0.93165
    crop_margin: float = 0.15
    crop_pool: int = 8
    noise_draws: int | None = None
    crops_per_step: int = 1
    sigma: float = 27.98 / 512
    target_cells: TargetCells = "centres"
    layers: Sequence[str] = ("up@1/4", "up@1/2")
    heads: Heads = "all"
    queries: Queries = "conditioned"
    null_prompt: NullPrompt = "empty"
    start: Start = "random"
    early_stop: float | None = None
    points_per_prompt: int = 1
    sides: Sides = "ignore"
    consensus: float = 0.0
    consensus_reach: float = 3 / 16
    consensus_mirror: bool = True
    readout: Readout = "windowed_soft_argmax"
    readout_temperature: float = 0.1
    layer_temperature: float | None = None
    confidence: str | Sequence[str] = "peak_mass"
    map_side: int | Literal["image"] | None = None
    heatmap_side: int | None = None
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks all fields; what is wrong is reported together in one :class:`ConfigError`."""
        object.__setattr__(self, "layers", tuple(self.layers))
        kinds = (self.confidence,) if isinstance(self.confidence, str) else tuple(self.confidence)
        object.__setattr__(self, "confidence", kinds)
        wrong = [
            f"{name} in {list(choices)} (got {getattr(self, name)!r})"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and value != "image" and not low <= value <= high:
                wrong.append(f"{name} in [{low:g}, {high:g}] (got {value!r})")
        known = get_args(Confidence)
        if not kinds or not set(kinds) <= set(known):
            wrong.append(f"confidence to name some of {list(known)} (got {list(kinds)})")
        wrong = wrong or self._contradictions()
        if wrong:
            raise ConfigError(f"Expected {'; '.join(wrong)}; change these settings of prompt optimisation.")

    def _contradictions(self) -> list[str]:
        wrong = []
        if self.crop_source == "pool":
            for name in ("crops", "crops_per_step"):
                if getattr(self, name) > self.crop_pool:
                    wrong.append(f"{name} to be at most crop_pool (got {getattr(self, name)} and {self.crop_pool})")
        elif self.queries == "frozen":
            wrong.append("crop_source=pool with queries=frozen, which are made once per crop (got fresh)")
        if self.sides == "compete" and self.points_per_prompt > 1:
            wrong.append(f"points_per_prompt to be 1 with sides=compete (got {self.points_per_prompt})")
        if "second_look" in self.confidence and not self.consensus:
            wrong.append("consensus above 0 with the confidence second_look, which is that of the neighbours (got 0)")
        return wrong

    @property
    def needs_null_prompt(self) -> bool:
        """Whether the UNet is given a prompt that says nothing, beside those that are optimised."""
        return self.queries == "frozen" or self.consensus > 0

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
    "crop_source": get_args(CropSource),
    "crop_edges": get_args(CropEdges),
    "target_cells": get_args(TargetCells),
    "heads": get_args(Heads),
    "queries": get_args(Queries),
    "null_prompt": get_args(NullPrompt),
    "start": get_args(Start),
    "sides": get_args(Sides),
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
    "early_stop": (_TINY, 1),
    "points_per_prompt": (1, math.inf),
    "consensus": (0, math.inf),
    "consensus_reach": (_TINY, 1),
    "readout_temperature": (_TINY, math.inf),
    "layer_temperature": (_TINY, math.inf),
    "map_side": (1, math.inf),
    "heatmap_side": (1, math.inf),
}
