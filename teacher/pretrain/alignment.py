"""Word by place: the cross-attention learns which words of a caption belong to which places of the picture.

Denoising alone teaches a small model little about meaning in the hours that two cores have. So the scores that
cross-attention is made of are also used much as in FILIP (Yao et al., ICLR 2022): each word looks for the places that
suit it, the sum over the words says how well a caption suits a picture, and each picture has to tell its own caption
from the others, and each caption its own picture. Pictures and captions are all that is needed.

That alone can be learned by features that know the whole picture everywhere. So the words also compete for the places, as
they do in the attention itself: each must be the most attended one somewhere (as in Attend-and-Excite, Chefer et al.,
SIGGRAPH 2023, which asks it of a drawing in the making).

The pictures' queries must come from a pass that is given no caption. Otherwise the features carry the words already,
and caption and picture are told apart without a look at the picture.
"""

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from teacher.attention import cross_attention_layers


class QueryRecorder:
    """Keeps the queries of all cross-attention layers of a UNet's latest pass.

    Args:
        unet: gets hooks on the layers' projections; its outputs do not change.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._layers = [layer.attention for layer in cross_attention_layers(unet)]  # as they run, and so as they record
        self._latest: list[Tensor] = []
        for layer in self._layers:
            layer.to_q.register_forward_hook(lambda _, __, out: self._latest.append(out))

    def against(self, prompts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each layer's scaled queries (B, S, heads, d) and its keys (N, L, heads, d) for ``prompts`` (N, L, D)."""
        for layer, query in zip(self._layers, self._latest, strict=True):
            split = (layer.heads, -1)
            yield query.unflatten(-1, split) * layer.scale, layer.to_k(prompts).unflatten(-1, split)

    def clear(self) -> None:
        """Forgets; to be called before each pass."""
        self._latest.clear()


def alignment_loss(query: Tensor, key: Tensor, tokens: Tensor, is_word: Tensor) -> Tensor:
    """Returns the mean cross-entropy of telling captions by pictures and pictures by captions.

    How well a word suits a picture is the log-mean-exp of its scores over the places, which lies between their mean and
    their maximum (Pinheiro and Collobert, CVPR 2015): all of a part's places learn its word and not the best one alone.

    Args:
        query: (B, S, heads, d) of B pictures at S places, scaled.
        key: (N, L, heads, d) of the tokens of N captions. The first B are the pictures' own, the others decoys.
        tokens: (N, L); a caption that equals a picture's own is no wrong answer, and is left out.
        is_word: (N, L) bool, tokens that are words and neither marks nor padding.
    """
    n_pictures, n_places = query.shape[:2]
    scores = torch.einsum("bshd,whd->hbsw", query, key[is_word]).float()
    fit = scores.logsumexp(2).mean(0) - torch.tensor(n_places).log()
    suits = fit.new_zeros(n_pictures, len(key)).index_add(1, is_word.nonzero()[:, 0], fit)
    own = torch.arange(n_pictures, device=query.device)
    twins = (tokens[:n_pictures, None] == tokens).all(-1)
    twins[own, own] = False
    suits = suits.masked_fill(twins, -torch.inf)
    return (F.cross_entropy(suits, own) + F.cross_entropy(suits[:, :n_pictures].T, own)) / 2


def coverage_loss(query: Tensor, key: Tensor, is_word: Tensor) -> Tensor:
    """Returns how far the words are from each having places of its own: the mean negative logarithm of their attention there.

    Args:
        query: (B, S, heads, d) of B pictures at S places, scaled. A word needs a sixteenth of the places.
        key: (B, L, heads, d) of their captions' tokens, all of which compete.
        is_word: (B, L) bool, tokens that need places; 0 is returned where none do.
    """
    attention = torch.einsum("bshd,blhd->bhsl", query, key).float().softmax(-1).mean(1)
    there = attention.topk(max(1, query.shape[1] // 16), dim=1).values.mean(1)
    return -there.log()[is_word].sum() / is_word.sum().clamp_min(1)
