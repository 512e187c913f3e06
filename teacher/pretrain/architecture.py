"""The parts of a small Stable Diffusion.

By default a picture of 128 px becomes 32 x 32 latents of 4 channels, and the UNet attends to the prompt at half and a quarter of
their side, as Stable Diffusion does where the paper reads it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from distill.core.errors import ConfigError, WeightsError
from teacher.pipeline import load_part
from teacher.pipeline_files import missing_files
from teacher.text import check_text, load_text_encoder, load_text_part


def build_tokenizer(captions: Iterable[str], length: int, init_from: str | None = None) -> CLIPTokenizer:
    """Learns a byte-pair vocabulary in which every word of ``captions`` is one token, and each mark and digit one of its own.

    Args:
        captions: texts that hold every word there is.
        length: tokens of a prompt, the start and end marks included.
        init_from: a pipeline folder whose tokenizer is taken instead.
    """
    if init_from is not None:
        return load_text_part(CLIPTokenizer, Path(init_from).expanduser(), "tokenizer")
    first, last = "<|startoftext|>", "<|endoftext|>"
    cut = CLIPTokenizer(vocab={first: 0, last: 1}, merges=[]).backend_tokenizer
    words = Counter(word for caption in captions for word in _words(cut, caption))
    merges = _learn_merges(words)
    letters = sorted({letter for word in words for letter in _letters(word)})
    vocabulary = dict.fromkeys([first, last, *letters, *("".join(pair) for pair in merges)])
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=length)


def _words(cut: Tokenizer, caption: str) -> list[str]:
    """Returns a caption as CLIP's tokenizer cuts it, at blanks, punctuation and digits, with a letter for each byte."""
    return [word for word, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(caption))]


def _letters(word: str) -> list[str]:
    return [*word[:-1], word[-1] + "</w>"]


def _learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Learns byte-pair merges (Sennrich et al., ACL 2016) until each word is one token.

    The trainer of ``tokenizers`` breaks ties differently in each process, and an interrupted training would go on with other
    numbers for its words.
    """
    pieces = {word: _letters(word) for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            pieces[word] = _merged(parts, best)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_text_encoder(
    tokenizer: CLIPTokenizer, width: int, layers: int, init_from: str | None = None
) -> CLIPTextModel:
    """Returns a CLIP text transformer with random weights, or the one of the pipeline folder ``init_from``."""
    if init_from is not None:
        folder = Path(init_from).expanduser()
        check_text(folder)
        return load_text_encoder(folder).train()
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


def build_autoencoder(channels: int, latent_channels: int, num_downsamples: int) -> AutoencoderTiny:
    """Returns an autoencoder with random weights.

    Args:
        channels: width of its convolutions.
        latent_channels: channels of the latents.
        num_downsamples: how often the side is halved on the way to the latents.
    """
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(channels,) * (num_downsamples + 1),
        decoder_block_out_channels=(channels,) * (num_downsamples + 1),
        num_encoder_blocks=(1, *(2,) * num_downsamples),
        num_decoder_blocks=(*(2,) * num_downsamples, 1),
    )


def build_unet(
    latent_side: int,
    latent_channels: int,
    channels: Sequence[int],
    encoder_attention: Sequence[bool],
    decoder_attention: Sequence[bool],
    prompt_width: int,
    init_from: str | None = None,
) -> UNet2DConditionModel:
    """Returns a UNet with random weights. The output projections of its attention start at zero, as in latent diffusion.

    Args:
        latent_side: of the latents it is trained on.
        latent_channels: channels of the latents.
        channels: at the latents' side, half of it, and so on.
        encoder_attention: for each of these levels, whether it attends to the prompt (and to itself) on the way down.
        decoder_attention: the same on the way up, in the same order.
        prompt_width: channels of a prompt's tokens.
        init_from: a pipeline folder whose UNet gives the weights, instead of random ones; what it lacks stays random.

    Raises:
        WeightsError: when that folder lacks files.
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
    if init_from is not None:
        folder = Path(init_from).expanduser()
        if missing := missing_files(folder, ("unet",)):
            raise WeightsError(f"Expected a pipeline in {folder} but it lacks {', '.join(missing)}; copy it again.")
        _start_from(load_part(UNet2DConditionModel, folder, "unet", None, torch.float32), unet)
    return unet


def _start_from(smaller: UNet2DConditionModel, larger: UNet2DConditionModel) -> None:
    weights, places = smaller.state_dict(), larger.state_dict()
    strange = [name for name, value in weights.items() if name not in places or places[name].shape != value.shape]
    if strange:
        raise ConfigError(
            f"Expected diffusion.init_from to hold part of the UNet that is described but {len(strange)} of its weights have "
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
