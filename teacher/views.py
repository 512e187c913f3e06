"""Noisy crops as a UNet sees them, ready to be attended to by many prompts.

Two ways to look: with the prompt's influence on the features, as in the paper, or without it.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from teacher.attention import split_heads, token_maps
from teacher.unet import PromptedUNet


class View(Protocol):
    """C noisy crops, looked at once."""

    def attend(self, crop_of: Tensor, prompts: Tensor, n_tokens: int) -> list[Tensor]:
        """Returns the attention maps of R prompts.

        Args:
            crop_of: (R,) int64 in [0, C), the crop that each prompt looks at.
            prompts: (R, L, D).
            n_tokens: tokens 1 to ``n_tokens`` of each prompt are read.

        Returns:
            One (R, n_tokens, h, w) in [0, 1] a layer, differentiable with respect to ``prompts``.
        """
        ...


Look = Callable[[Tensor, int], View]
"""Turns noisy latents (C, channels, h, w) at a timestep into a view."""


class ConditionedView:
    """The method of the paper: every prompt runs through the UNet and changes the features that it attends to."""

    def __init__(self, unet: PromptedUNet, latents: Tensor, timestep: int) -> None:
        self.unet, self.prefix = unet, unet.prefix(latents, timestep)

    def attend(self, crop_of: Tensor, prompts: Tensor, n_tokens: int) -> list[Tensor]:
        """See :class:`View`."""
        recorded = self.unet.record(self.prefix, crop_of, prompts)
        scales = [layer.attention.scale for layer in self.unet.layers]
        return [token_maps(r.query, r.key, scale, n_tokens) for r, scale in zip(recorded, scales, strict=True)]


class FrozenView:
    """A shortcut: the UNet runs once per crop with a prompt that says nothing, and its queries are kept.

    A prompt then acts through the keys of the layers that are read only, so that no step of the optimisation runs the
    UNet. The maps differ from the paper's, because there the prompt also acts on the features.
    """

    def __init__(self, unet: PromptedUNet, null_prompt: Tensor, latents: Tensor, timestep: int) -> None:
        self.layers = [layer.attention for layer in unet.layers]
        with torch.no_grad():
            crops = torch.arange(len(latents), device=latents.device)
            recorded = unet.record(unet.prefix(latents, timestep), crops, null_prompt.expand(len(latents), -1, -1))
        self.queries = [r.query.float() for r in recorded]

    def attend(self, crop_of: Tensor, prompts: Tensor, n_tokens: int) -> list[Tensor]:
        """See :class:`View`."""
        maps = []
        for layer, query in zip(self.layers, self.queries, strict=True):
            key = split_heads(layer.to_k(prompts.to(layer.to_k.weight.dtype)), layer.heads)
            maps.append(token_maps(query[crop_of], key, layer.scale, n_tokens))
        return maps
