"""Running a UNet for its cross-attention only.

The forward pass is split where the prompt enters. What comes before is computed once per noisy crop and shared by all
prompts; what comes after the last layer that is read is not computed at all (in Stable Diffusion 1.x, 45 % of the
work). What is recorded equals what ``UNet2DConditionModel.forward`` would compute.
"""

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from teacher.attention import Layer, split_heads


class Prefix(NamedTuple):
    """What a UNet computes of C noisy crops before the prompt enters.

    Attributes:
        sample: (C, channels, h, w) features.
        skips: the features kept for the decoder, each (C, ...).
        time: (C, T) embedding of the timestep.
    """

    sample: Tensor
    skips: list[Tensor]
    time: Tensor


class Recording(NamedTuple):
    """Queries (R, heads, S, d) and keys (R, heads, L, d) of one layer."""

    query: Tensor
    key: Tensor


class PromptedUNet:
    """A UNet whose chosen cross-attention layers can be read.

    Args:
        unet: frozen; its attention processors are replaced.
        layers: those to record, in the order in which they run.
        image_size: side in px of the images it sees, a condition of SDXL.
        truncate: whether to stop after the last layer that is read. It changes no answer, only what it costs.
        share: whether prompts share what is computed before they enter. It changes no answer either.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        layers: list[Layer],
        image_size: int,
        truncate: bool = True,
        share: bool = True,
    ) -> None:
        self.unet, self.layers, self.image_size = unet, layers, image_size
        self.passes = 0  # prompts run so far
        self._records: list[Recording] = []
        self._times: dict[tuple, Tensor] = {}
        unet.set_attn_processor(AttnProcessor2_0())
        for layer in layers:
            layer.attention.set_processor(_Recorder(self._records, last=truncate and layer is layers[-1]))
        prompted = [_reads_prompt(block) for block in unet.down_blocks]
        self._n_shared = (prompted.index(True) if True in prompted else len(prompted)) if share else 0

    @torch.no_grad()
    def prefix(self, latents: Tensor, timestep: int) -> Prefix:
        """Runs noisy ``latents`` (C, channels, h, w) as far as no prompt is needed."""
        latents = latents.to(self.unet.dtype)
        time = self._time_of(latents, timestep)
        sample = self.unet.conv_in(2 * latents - 1 if self.unet.config.center_input_sample else latents)
        skips = [sample]
        for block in self.unet.down_blocks[: self._n_shared]:
            sample, more = block(hidden_states=sample, temb=time)
            skips += more
        return Prefix(sample, skips, time)

    def record(self, prefix: Prefix, crop_of: Tensor, prompts: Tensor) -> list[Recording]:
        """Runs R prompts, each on the crop that ``crop_of`` names, up to the last layer that is read.

        Args:
            prefix: of C crops.
            crop_of: (R,) int64 in [0, C).
            prompts: (R, L, D).

        Returns:
            One recording a layer, in the layers' order; differentiable with respect to the prompts.
        """
        self._records.clear()
        self.passes += len(prompts)
        with suppress(_LastLayerRead):
            self._run_prompted(prefix, crop_of, prompts.to(prefix.sample.dtype))
        return list(self._records)

    def _run_prompted(self, prefix: Prefix, crop_of: Tensor, prompts: Tensor) -> None:
        unet, time = self.unet, prefix.time[crop_of]
        shared, own = list(prefix.skips), []  # skip features per crop, expanded only when used, and per prompt
        sample = prefix.sample[crop_of]

        def run(block: Any, sample: Tensor, **arguments: Any) -> Any:
            """Runs one block of the UNet on ``sample``; returns what the block returns."""
            if _reads_prompt(block):
                arguments["encoder_hidden_states"] = prompts
            return block(hidden_states=sample, temb=time, **arguments)

        for block in unet.down_blocks[self._n_shared :]:
            sample, more = run(block, sample)
            own += more
        if unet.mid_block is not None:
            sample = run(unet.mid_block, sample)
        for block in unet.up_blocks:
            skips = [own.pop() if own else shared.pop()[crop_of] for _ in block.resnets]
            sample = run(block, sample, res_hidden_states_tuple=tuple(reversed(skips)))

    def _time_of(self, latents: Tensor, timestep: int) -> Tensor:
        """Returns the time embedding for each of ``latents``; made once, because a number is copied to the device for it."""
        key = timestep, latents.dtype, latents.device, self.image_size
        if key not in self._times:
            self._times[key] = self._time_embedding(latents[:1], timestep)
        return self._times[key].expand(len(latents), -1)

    def _time_embedding(self, latents: Tensor, timestep: int) -> Tensor:
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(latents, timestep))
        if unet.config.addition_embed_type == "text_time":
            time = time + unet.get_aug_embed(time, latents, added_conditions(unet, latents, self.image_size))
        return time if unet.time_embed_act is None else unet.time_embed_act(time)


def added_conditions(unet: UNet2DConditionModel, latents: Tensor, image_size: int) -> dict[str, Tensor]:
    """Returns SDXL's second conditioning for latents (C, ...); nothing for a UNet that has none.

    No caption (zeros), and a whole, uncropped picture of ``image_size`` px.
    """
    config = unet.config
    if config.addition_embed_type != "text_time":
        return {}
    sizes = latents.new_tensor([image_size] * 2 + [0, 0] + [image_size] * 2)
    width = config.projection_class_embeddings_input_dim - len(sizes) * config.addition_time_embed_dim
    return {"text_embeds": latents.new_zeros(len(latents), width), "time_ids": sizes.expand(len(latents), -1)}


def _reads_prompt(block: torch.nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


class _LastLayerRead(Exception):
    """Leaves the forward pass at the point where nothing that follows is needed, from within any kind of block."""


class _Recorder(AttnProcessor2_0):
    """diffusers' fused attention, which also records its queries and keys."""

    def __init__(self, records: list[Recording], last: bool) -> None:
        super().__init__()
        self.records, self.last = records, last

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args, **kwargs
    ) -> Tensor:
        assert encoder_hidden_states is not None, "only cross-attention is recorded"
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        self.records.append(Recording(query, key))
        if self.last:
            raise _LastLayerRead
        value = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))
