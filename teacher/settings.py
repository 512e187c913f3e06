"""The settings of prompt optimisation: names, ranges, defaults."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from distill.core.errors import ConfigError, nearest

NullPrompt = Literal["empty", "zeros"]
Precision = Literal["fp32", "bf16", "fp16"]
Readout = Literal["argmax", "subpixel", "soft_argmax", "windowed_soft_argmax"]
ConfidenceKind = Literal[
    "peak_mass", "peak", "entropy", "prompt_agreement", "cycle", "flip_agreement", "flip_consistency"
]

Count = Annotated[int, Strict(), Ge(1)]
Seed = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Timestep = Annotated[int, Strict(), Ge(0)]
Positive = Annotated[float, Strict(), Gt(0)]
Amount = Annotated[float, Strict(), Ge(0)]
Fraction = Annotated[float, Strict(), Gt(0), Le(1)]


def _as_tuple(value: Any) -> Any:
    """Returns one name or a list of names as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Len(1)]
ConfidenceKinds = Annotated[tuple[ConfidenceKind, ...], BeforeValidator(_as_tuple), Len(1)]


class CheckedSettings(BaseModel):
    """Immutable settings that refuse unknown names and values out of range.

    Raises:
        ConfigError: one for all that is wrong; an unknown name comes with the nearest known one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = "; ".join(_sentences(error.errors(), type(self).model_fields))
            raise ConfigError(f"Expected {wrong}; change these settings of {self.subject()}.") from error

    @classmethod
    def subject(cls) -> str:
        """Returns whose settings these are, for error messages."""
        return (cls.__doc__ or cls.__name__).partition(".")[0].removeprefix("Settings of ")


class Settings(CheckedSettings):
    """Settings of prompt optimisation. The defaults suit the small model that is shipped with the project.

    Lengths are fractions of the side of what the UNet sees, so that they carry over from one image size to another.
    "Released" is what the paper's code does (ubc-vision/LDM_correspondences, 97e3246). All fields but those of
    ``COST_ONLY`` are part of a label's fingerprint.

    Attributes:
        embeddings: prompts per query point, from as many random starts.
        steps: steps of Adam.
        lr: its learning rate.
        timestep: diffusion time of the source image; the value, not an index.
        locate_timestep: diffusion time of the target image; None for ``timestep``, at which the prompt was optimised.
            Released: 140 and 40.
        noise: "gaussian" is what the UNet was trained with; "uniform" on [0, 1) is what the released code draws.
        crops: crops of the target per prompt. From four on the first four are the corners; with fewer, or with corners that
            leave the middle out (``crop_ratio`` below a half), the first is the whole image, so that every pixel is seen
            either way. The others are around the maximum found so far.
        crop_source: "pool" draws from crops that are encoded once and shared by all points, prompts and steps; "fresh"
            encodes a new crop for every prompt and step, as released, at the cost of a VAE encoding per UNet pass.
        crop_edges: "exact" cuts where the crop lies; "pixels" rounds its place and size down to whole pixels and divides
            a point's place in it by the crop's width for both axes, as released (images are square there and here).
        crop_ratio: side of a crop.
        crop_margin: distance from a crop's border, as a fraction of the crop, that the query keeps where possible.
        crop_pool: crops that an image is encoded at, corners included, with ``crop_source="pool"``.
        noise_draws: draws of noise for each crop of the pool; None for a new one at every step, as in the paper.
            Frozen queries want a number, because each draw is one pass through the UNet.
        crops_per_step: crops that each prompt sees in one step; more make the gradient less noisy and cost as much.
        sigma: standard deviation of the Gaussian that attention is compared with. The paper's 27.98 px of 512.
        target_cells: where the cells of the Gaussian lie, "centres" for j + 0.5, or "corners" for j, as released, which
            is half a cell off the j + 0.5 at which the maximum is reported.
        layers: cross-attention layers to read, see :mod:`teacher.attention`.
        heads: "all" are averaged, or the "upper" half of them, which is all that the released code stores.
        queries: "conditioned" runs every prompt through the UNet, as in the paper; "frozen" runs the UNet once per crop
            and lets prompts act on the keys alone, which makes a step hundreds of times cheaper and is not the same.
        null_prompt: what the UNet is given when queries are frozen: the text encoder's empty prompt, or zeros. SDXL is given zeros
            for either.
        start: "random" draws all tokens from N(0, 1); "query" solves for the token that the layers' projections turn
            into the features at the query point, which starts close to the answer.
        early_stop: a prompt is done when ten steps lower its loss by less than this fraction; None takes all steps.
        points_per_prompt: points of an image that share a prompt as its tokens 1, 2, ...; more are cheaper and compete
            with each other, and an answer then depends on the other points of the call.
        symmetry: treatment of left-right symmetry. "none", as in the paper; "flip_contrast" weighs the target's map
            against the map of its flipped image, where the symmetric counterpart has high attention instead; "negative_token"
            optimises a second token at the maximum of the prompt's attention in the flipped source.
        consensus: strength of neighbourhood consensus, see :class:`distill.core.consensus.NeighbourhoodConsensus`; 0 for
            none, as in the paper.
        consensus_sigma: standard deviation of a neighbour's weight by its distance.
        consensus_flip: whether the target is also compared flipped, and the orientation that agrees better is taken.
        readout: "argmax", the highest cell's centre, as released; "subpixel", the vertex of the parabolas through it and
            its neighbours; "soft_argmax", the mean over all cells; "windowed_soft_argmax", the mean around the maximum.
        readout_temperature: of the two soft ones, relative to the map's peak.
        layer_temperature: of the softmax over all pixels that each layer goes through before the layers are averaged;
            the paper's is 1. None averages the layers as they are.
        confidence: one kind or several, whose geometric mean is taken; see :mod:`teacher.confidence`. "cycle" and
            "flip_agreement" cost further passes, "flip_consistency" one for each image; it wants ``consensus``.
        map_side: cells a side of the grid on which maps are compared and accumulated, or "image" for the image's pixels,
            as released; None for twice the latents' side, which loses nothing because maps are coarser.
        heatmap_side: cells a side of the heatmap that is returned, whose maximum is 1; None for a quarter of map_side.
        precision: "fp32", or "bf16" or "fp16" for weights and activations of the model. Maps, points, read-out and
            consensus are computed in fp32 in any case.
        seed: of all that is random; with the image's content it decides starts, noise and crops.
        batch_size: prompts or crops that run together, at most. When memory runs out, the caches are emptied first, then
            it is halved.
        prompt_cache_size: bound on the memory of kept prompts of source points, GiB.
        feature_cache_size: bound on the memory of kept features of images, GiB, on the model's device.
        truncate_unet: whether the UNet stops after the last layer that is read.
        share_prefix: whether prompts share what the UNet computes before they enter.
        cuda_graph: "auto" captures a step of the optimisation on a GPU and replays it, which saves launching its kernels one
            by one; "off" does not. Without effect on a CPU, and with ``early_stop``, whose steps differ.
    """

    embeddings: Count = 2
    steps: Count = 50
    lr: Positive = 0.05
    timestep: Timestep = 150
    locate_timestep: Timestep | None = None
    noise: Literal["gaussian", "uniform"] = "gaussian"
    crops: Count = 4
    crop_source: Literal["pool", "fresh"] = "pool"
    crop_edges: Literal["exact", "pixels"] = "exact"
    crop_ratio: Annotated[float, Strict(), Ge(0.1), Le(1)] = 0.93165
    crop_margin: Annotated[float, Strict(), Ge(0), Le(0.5)] = 0.15
    crop_pool: Annotated[int, Strict(), Ge(4)] = 8
    noise_draws: Count | None = 4
    crops_per_step: Count = 1
    sigma: Fraction = 0.0546484375
    target_cells: Literal["centres", "corners"] = "centres"
    layers: Names = ("up@1/2",)
    heads: Literal["all", "upper"] = "all"
    queries: Literal["conditioned", "frozen"] = "frozen"
    null_prompt: NullPrompt = "empty"
    start: Literal["random", "query"] = "random"
    early_stop: Fraction | None = None
    points_per_prompt: Count = 1
    symmetry: Literal["none", "flip_contrast", "negative_token"] = "none"
    consensus: Amount = 3.0
    consensus_sigma: Fraction = 0.1875
    consensus_flip: Flag = True
    readout: Readout = "windowed_soft_argmax"
    readout_temperature: Positive = 0.1
    layer_temperature: Positive | None = None
    confidence: ConfidenceKinds = ("peak_mass",)
    map_side: Count | Literal["image"] | None = None
    heatmap_side: Count | None = None
    precision: Precision = "fp32"
    seed: Seed = 0
    batch_size: Count = 32
    prompt_cache_size: Amount = 0.5
    feature_cache_size: Amount = 2.0
    truncate_unet: Flag = True
    share_prefix: Flag = True
    cuda_graph: Literal["auto", "off"] = "auto"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        wrong = []
        if self.crop_source == "pool":
            for name in ("crops", "crops_per_step"):
                if getattr(self, name) > self.crop_pool:
                    wrong.append(f"{name} to be at most crop_pool (got {getattr(self, name)} and {self.crop_pool})")
        elif self.queries == "frozen":
            wrong.append("crop_source=pool with queries=frozen, which are made once per crop (got fresh)")
        if self.symmetry == "negative_token" and self.points_per_prompt > 1:
            wrong.append(f"points_per_prompt to be 1 with symmetry=negative_token (got {self.points_per_prompt})")
        if "flip_consistency" in self.confidence and not self.consensus:
            wrong.append("consensus above 0 with the confidence flip_consistency, which is read off it (got 0)")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def starts_at_corners(self) -> bool:
        """Whether the first four crops of a target are its corners, and not the first one the whole image."""
        return self.crops >= 4 and self.crop_ratio >= 0.5

    @property
    def point_tokens(self) -> int:
        """How many tokens of a prompt, after its start, are optimised for a place at once."""
        return 2 if self.symmetry == "negative_token" else self.points_per_prompt

    @property
    def needs_null_prompt(self) -> bool:
        """Whether the UNet is given a prompt without content, beside those that are optimised."""
        return self.queries == "frozen" or self.consensus > 0

    @property
    def reads_text(self) -> bool:
        """Whether the pipeline's own text encoder decides answers too."""
        return self.needs_null_prompt and self.null_prompt == "empty"

    def fingerprint(self) -> dict[str, str]:
        """Returns the settings that decide an answer, as text, by name."""
        return {name: str(value) for name, value in self.model_dump(exclude=set(COST_ONLY)).items()}


COST_ONLY = frozenset(
    {"batch_size", "prompt_cache_size", "feature_cache_size", "truncate_unet", "share_prefix", "cuda_graph"}
)
"""Settings that change time and memory, and no answer."""

_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "finite",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list of names",
    "too_short": "a list of at least one name",
}


def _sentences(errors: Iterable[ErrorDetails], known: Iterable[str]) -> Iterator[str]:
    """Yields what must hold and what was found, for each setting, from pydantic's errors.

    Of a setting that may be of several types there is an error for each of them.
    """
    wanted: dict[str, list[str]] = {}
    got: dict[str, Any] = {}
    for error in errors:
        if error["type"] == "value_error":
            yield str(error["ctx"]["error"])
        elif error["type"] == "extra_forbidden":
            name = str(error["loc"][0])
            yield f"known settings but got {name!r}: {nearest(name, known)}"
        else:
            name = str(error["loc"][0])
            wanted.setdefault(name, []).append(_wanted(error))
            got.setdefault(name, error["input"])
    for name, words in wanted.items():
        yield f"{name} to be {' or '.join(dict.fromkeys(words))} (got {got[name]!r})"


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        choices = context["expected"].replace("'", "")
        return choices if len(error["loc"]) == 1 or "or" not in choices else f"made of {choices}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {context[key]:g}"
    return _KINDS.get(kind, error["msg"])
