"""Word by place: the cross-attention learns which words of a caption belong to which places of the picture.

Denoising alone teaches a small model little about meaning in the hours that two cores have. So the scores that
cross-attention is made of are also used as in FILIP (Yao et al., ICLR 2022): each word looks for the place that suits it
best, the sum over the words says how well a caption suits a picture, and each picture has to tell its own caption from
the others of the batch, and each caption its own picture. Pictures and captions are all that is needed.
"""

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from teacher.attention import cross_attention_layers


class AttentionTape:
    """Keeps the queries and keys of all cross-attention layers of a UNet's latest pass.

    Args:
        unet: gets hooks on the layers' projections; its outputs do not change.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._layers = [layer.attention for layer in cross_attention_layers(unet)]  # as they run, and so as they record
        self._latest: dict[str, list[Tensor]] = {"to_q": [], "to_k": []}
        for layer in self._layers:
            for name, kept in self._latest.items():
                layer.get_submodule(name).register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each layer's scaled queries (B, S, heads, d) and keys (B, L, heads, d)."""
        for layer, query, key in zip(self._layers, self._latest["to_q"], self._latest["to_k"], strict=True):
            split = (layer.heads, -1)
            yield query.float().unflatten(-1, split) * layer.scale, key.float().unflatten(-1, split)

    def clear(self) -> None:
        """Forgets; to be called before each pass."""
        for kept in self._latest.values():
            kept.clear()


def alignment_loss(query: Tensor, key: Tensor, is_word: Tensor) -> Tensor:
    """Returns the mean cross-entropy of telling captions by pictures and pictures by captions.

    Args:
        query: (B, S, heads, d) of B pictures at S places, scaled.
        key: (B, L, heads, d) of their captions' L tokens.
        is_word: (B, L) bool, tokens that are words and neither marks nor padding.
    """
    scores = torch.einsum("bshd,clhd->bchls", query, key).amax(-1).mean(2)
    suits = (scores * is_word).sum(-1)
    own = torch.arange(len(suits), device=suits.device)
    return (F.cross_entropy(suits, own) + F.cross_entropy(suits.T, own)) / 2
