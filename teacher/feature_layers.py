"""Layers of a UNet whose output describes an image: their names, and hooks that read them.

A name is a place, as for prompt optimisation (:mod:`teacher.attention`), and what is read there: ``up@1/4`` is the output of
the decoder's block at a quarter of the latents' side, with the enlargement that ends it; ``up@1/4:1.cross_q`` are the queries of the second
cross-attention at that place, and ``up@1/4.cross_q`` those of all of them. Kinds:

| kind | what is read |
|---|---|
| ``block`` | the output of the whole block; the kind when none is named (Tang et al., DIFT, NeurIPS 2023) |
| ``resnet`` | the output of a residual block |
| ``transformer`` | the output of one inner transformer block (Meng et al., "Not All Diffusion Model Activations ...", NeurIPS 2024) |
| ``self_q``, ``self_k`` | queries and keys of self-attention, all heads |
| ``cross_q`` | queries of cross-attention, all heads; its keys belong to the prompt and not to the image |
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.core.errors import ConfigError
from teacher.attention import named_blocks

KINDS = ("block", "resnet", "transformer", "self_q", "self_k", "cross_q")


class FeatureLayer(NamedTuple):
    """A module whose output is a map of the image.

    Attributes:
        place: block and resolution, such as ``up@1/4``.
        kind: one of ``KINDS``.
        number: which of the layers of that kind at that place it is, in the order in which they run.
        module: the module.
    """

    place: str
    kind: str
    number: int
    module: nn.Module

    @property
    def name(self) -> str:
        """The full name, such as ``up@1/4:0.block``."""
        return f"{self.place}:{self.number}.{self.kind}"


def feature_layers(unet: UNet2DConditionModel) -> list[FeatureLayer]:
    """Returns all layers that can be read, block by block."""
    counts: Counter[tuple[str, str]] = Counter()
    layers = []
    for place, block in named_blocks(unet):
        for kind, module in [*_inside(block), ("block", block)]:
            layers.append(FeatureLayer(place, kind, counts[place, kind], module))
            counts[place, kind] += 1
    return layers


def choose_features(unet: UNet2DConditionModel, names: Sequence[str]) -> list[FeatureLayer]:
    """Returns the layers that ``names`` mean, each once, in the order of :func:`feature_layers`.

    Raises:
        ConfigError: when a name is of another form, or means no layer of this UNet.
    """
    layers = feature_layers(unet)
    chosen: set[int] = set()
    for name in names:
        form = re.fullmatch(r"(?P<place>(?:down|mid|up)@1/\d+)(?::(?P<number>\d+))?(?:\.(?P<kind>\w+))?", name)
        if form is None or (form["kind"] or "block") not in KINDS:
            advice = "; keys of cross-attention belong to the prompt" if name.endswith(".cross_k") else ""
            raise ConfigError(
                f"Expected layers to be named like up@1/4, up@1/4.cross_q or up@1/4:0.cross_q, of the kinds {', '.join(KINDS)}, "
                f"but got {name!r}{advice}; there are: {_listed(layers)}."
            )
        wanted = form["place"], form["kind"] or "block"
        found = {
            index
            for index, layer in enumerate(layers)
            if (layer.place, layer.kind) == wanted and form["number"] in (None, str(layer.number))
        }
        if not found:
            raise ConfigError(
                f"Expected layers to name features but {name!r} means none; there are: {_listed(layers)}."
            )
        chosen |= found
    if not chosen:
        raise ConfigError(f"Expected at least one layer to read in layers but got none; there are: {_listed(layers)}.")
    return [layers[index] for index in sorted(chosen)]


def record(layers: Sequence[FeatureLayer], run: Callable[[], object]) -> list[Tensor]:
    """Calls ``run``, which runs the UNet, and returns what the layers put out, one (R, C, h, w) each.

    The forward pass is left as soon as the last layer is read. All hooks are removed, whatever happens. Maps are square.
    """
    kept: dict[int, Tensor] = {}
    handles: list[RemovableHandle] = []
    try:
        for index, layer in enumerate(layers):
            handles.append(layer.module.register_forward_hook(partial(_keep, kept, index, len(layers))))
        with suppress(_AllRead):
            run()
    finally:
        for handle in handles:
            handle.remove()
    assert len(kept) == len(layers), "every layer of a UNet runs"
    return [_as_map(kept[index]) for index in range(len(layers))]


class _AllRead(Exception):
    """Leaves the forward pass where nothing that follows is needed."""


def _keep(kept: dict[int, Tensor], index: int, wanted: int, module: nn.Module, given: object, output: object) -> None:
    kept[index] = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]  # the encoder's give skips too
    if len(kept) == wanted:
        raise _AllRead


def _as_map(output: Tensor) -> Tensor:
    """Returns (R, S, C) of a square map as (R, C, h, w); maps as they are."""
    if output.ndim == 4:
        return output
    side = round(output.shape[1] ** 0.5)
    return output.transpose(1, 2).unflatten(2, (side, side))


def _inside(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for module in block.modules():
        if isinstance(module, ResnetBlock2D):
            yield "resnet", module
        elif isinstance(module, BasicTransformerBlock):
            yield "self_q", module.attn1.to_q
            if not module.only_cross_attention:
                yield "self_k", module.attn1.to_k
            if module.attn2 is not None:
                yield "cross_q", module.attn2.to_q
            yield "transformer", module


def _listed(layers: Sequence[FeatureLayer]) -> str:
    """Returns the places, each with the number of its layers of each kind."""
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        counts.setdefault(layer.place, Counter())[layer.kind] += 1
    return ", ".join(
        f"{place} ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})" for place, kinds in counts.items()
    )
