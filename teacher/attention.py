"""Cross-attention layers of a UNet: their names, and the attention maps of tokens.

A layer is named by its block and its resolution: ``up@1/4`` are all cross-attention layers of the decoder at a
quarter of the latents' side, ``up@1/4:0`` is the first of them. Blocks are ``down``, ``mid`` and ``up``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from distill.core.errors import ConfigError


class Layer(NamedTuple):
    """A cross-attention layer.

    Attributes:
        place: block and resolution, such as ``up@1/4``.
        number: which of the layers of that place it is, in the order in which they run.
        attention: the module.
    """

    place: str
    number: int
    attention: Attention


def cross_attention_layers(unet: UNet2DConditionModel) -> list[Layer]:
    """Returns all cross-attention layers in the order in which they run."""
    counts: Counter[str] = Counter()
    layers = []
    for place, attention in _in_order(unet):
        layers.append(Layer(place, counts[place], attention))
        counts[place] += 1
    return layers


def choose_layers(unet: UNet2DConditionModel, names: Sequence[str]) -> list[Layer]:
    """Returns the layers that ``names`` mean, in the order in which they run.

    Raises:
        ConfigError: when a name is not of the form ``up@1/4`` or ``up@1/4:0``, or means no layer of this UNet.
    """
    layers = cross_attention_layers(unet)
    counts = Counter(layer.place for layer in layers)
    found = ", ".join(f"{place} ({n} layer{'s' if n > 1 else ''})" for place, n in counts.items())
    chosen: set[int] = set()
    for name in names:
        form = re.fullmatch(r"(?P<place>(?:down|mid|up)@1/\d+)(?::(?P<index>\d+))?", name)
        if form is None:
            raise ConfigError(
                f"Expected layers to be named like up@1/4 or up@1/4:0 but got {name!r}; there are: {found}."
            )
        index = form["index"]
        matching = {
            i for i, layer in enumerate(layers) if layer.place == form["place"] and index in (None, str(layer.number))
        }
        if not matching:
            raise ConfigError(f"Expected layers to name cross-attention but {name!r} means none; there are: {found}.")
        chosen |= matching
    if not chosen:
        raise ConfigError(f"Expected at least one layer to read in layers but got none; there are: {found}.")
    return [layers[i] for i in sorted(chosen)]


def read_tokens(query: Tensor, key: Tensor, scale: float, tokens: int = 1, upper: bool = False) -> Tensor:
    """Returns the attention maps of the tokens after the start of the prompt.

    All tokens compete in the softmax; the maps of tokens 1 to T are kept and averaged over the heads. Computed in single
    precision whatever the UNet runs in.

    Args:
        query: (R, heads, h * w, d) of a square map.
        key: (R, heads, L, d).
        scale: multiplies the scores before the softmax.
        tokens: T.
        upper: whether only the upper half of the heads is averaged.

    Returns:
        (R, T, h, w) in [0, 1].
    """
    first = query.shape[1] // 2 if upper else 0
    scores = (query[:, first:].float() * scale) @ key[:, first:].float().transpose(-1, -2)
    attention_map = scores.softmax(-1)[..., 1 : 1 + tokens].mean(1).transpose(1, 2)
    side = round(attention_map.shape[-1] ** 0.5)
    return attention_map.unflatten(-1, (side, side))


def split_heads(features: Tensor, heads: int) -> Tensor:
    """Returns (R, S, heads * d) as (R, heads, S, d)."""
    return features.unflatten(-1, (heads, -1)).transpose(1, 2)


def named_blocks(unet: UNet2DConditionModel) -> Iterator[tuple[str, nn.Module]]:
    """Yields the blocks in the order in which they run, each with its place, such as ``up@1/4``."""
    divisor = 1
    for block in unet.down_blocks:
        yield f"down@1/{divisor}", block
        divisor *= 2 if getattr(block, "downsamplers", None) else 1
    if unet.mid_block is not None:
        yield f"mid@1/{divisor}", unet.mid_block
    for block in unet.up_blocks:
        yield f"up@1/{divisor}", block
        divisor //= 2 if getattr(block, "upsamplers", None) else 1


def _in_order(unet: UNet2DConditionModel) -> Iterator[tuple[str, Attention]]:
    for place, block in named_blocks(unet):
        yield from _in_block(block, place)


def _in_block(block: nn.Module, place: str) -> Iterator[tuple[str, Attention]]:
    for name, module in block.named_modules():
        if name.endswith(".attn2") and isinstance(module, Attention):
            yield place, module
