"""The parts of a Stable Diffusion small enough to be trained on two cores.

A picture of 128 px becomes 16 x 16 latents, an eighth of its side as in Stable Diffusion. Tried and left at equal time on
two cores: a third level with its bottleneck at 4 x 4 (the features at 8 x 8 learned half as fast), and latents of 32 x 32.
"""

import json
from collections.abc import Iterable, Sequence

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from distill.core.errors import ConfigError


def build_tokenizer(captions: Iterable[str], length: int, start: str | None = None) -> CLIPTokenizer:
    """Learns a byte-pair vocabulary in which every word of ``captions`` is one token.

    Args:
        captions: texts that hold every word there is.
        length: tokens of a prompt, the start and end marks included.
        start: a pipeline folder whose tokenizer is taken instead.
    """
    if start is not None:
        return CLIPTokenizer.from_pretrained(start, subfolder="tokenizer")
    first, last = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=last))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=[first, last], end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    return CLIPTokenizer(vocab=learner.get_vocab(), merges=_merges(learner), model_max_length=length)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, ...]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int, start: str | None = None) -> CLIPTextModel:
    """Returns a CLIP text transformer with random weights, or the one of the pipeline folder ``start``."""
    if start is not None:
        return CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=torch.float32)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )
    return CLIPTextModel(config)


def build_autoencoder(channels: int, latent_channels: int, halvings: int) -> AutoencoderTiny:
    """Returns an autoencoder with random weights.

    Args:
        channels: width of its convolutions.
        latent_channels: channels of the latents.
        halvings: how often the side is halved on the way to the latents.
    """
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(channels,) * (halvings + 1),
        decoder_block_out_channels=(channels,) * (halvings + 1),
        num_encoder_blocks=(1, *(2,) * halvings),
        num_decoder_blocks=(*(2,) * halvings, 1),
    )


def build_unet(
    latent_side: int,
    latent_channels: int,
    channels: Sequence[int],
    encoder_attention: Sequence[bool],
    decoder_attention: Sequence[bool],
    prompt_width: int,
    start: str | None = None,
) -> UNet2DConditionModel:
    """Returns a UNet with random weights. Its attention changes nothing at first, as in the original latent diffusion.

    Args:
        latent_side: of the latents it is trained on.
        latent_channels: channels of the latents.
        channels: at the latents' side, half of it, and so on.
        encoder_attention: for each of these levels, whether it attends to the prompt (and to itself) on the way down.
        decoder_attention: the same on the way up, in the same order.
        prompt_width: channels of a prompt's tokens.
        start: a pipeline folder whose UNet gives the weights, instead of random ones; what it lacks stays random.

    Raises:
        ConfigError: when that UNet has weights for which there is no place.
    """
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in encoder_attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(decoder_attention))
    unet = UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=prompt_width,
        attention_head_dim=4,  # diffusers' old name for the number of heads
        norm_num_groups=16,
        time_embedding_dim=192,
    )
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    if start is not None:
        _start_from(UNet2DConditionModel.from_pretrained(start, subfolder="unet", dtype=torch.float32), unet)
    return unet


def _start_from(smaller: UNet2DConditionModel, larger: UNet2DConditionModel) -> None:
    weights, places = smaller.state_dict(), larger.state_dict()
    strange = [name for name, value in weights.items() if name not in places or places[name].shape != value.shape]
    if strange:
        raise ConfigError(
            f"Expected diffusion.from to hold part of the UNet that is described but {len(strange)} of its weights have "
            f"no place there, such as {strange[0]}; describe all of its levels and attention."
        )
    larger.load_state_dict(weights, strict=False)


def build_scheduler() -> DDIMScheduler:
    """Returns Stable Diffusion's noise schedule with the velocity as the target (Salimans and Ho, ICLR 2022)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
