"""The parts of a Stable Diffusion small enough to be trained on two cores.

A picture of 128 px becomes 16 x 16 latents, an eighth of its side as in Stable Diffusion. Tried and left at equal time on
two cores: attention at the latents' full side (a third fewer pictures seen), a third level with its bottleneck at 4 x 4
(the features at 8 x 8, which are the ones that are read, learned half as fast), and latents of 32 x 32.
"""

import json
from collections.abc import Iterable, Sequence

from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def build_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """Learns a byte-pair vocabulary in which every word of ``captions`` is one token.

    Args:
        captions: texts that hold every word there is.
        length: tokens of a prompt, the start and end marks included.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=[start, end], end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    return CLIPTokenizer(vocab=learner.get_vocab(), merges=_merges(learner), model_max_length=length)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, ...]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """Returns a CLIP text transformer with random weights."""
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
    latent_side: int, latent_channels: int, channels: Sequence[int], attention: Sequence[bool], prompt_width: int
) -> UNet2DConditionModel:
    """Returns a UNet with random weights.

    Args:
        latent_side: of the latents it is trained on.
        latent_channels: channels of the latents.
        channels: at the latents' side, half of it, and so on.
        attention: for each of these levels, whether it attends to the prompt (and to itself).
        prompt_width: channels of a prompt's tokens.
    """
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention))
    return UNet2DConditionModel(
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
