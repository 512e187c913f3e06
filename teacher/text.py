"""Text encoder and tokenizer of a pipeline: checks, loading, and the embedding of a text."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from distill.core.errors import ConfigError, WeightsError
from distill.core.weights import check_finite
from teacher.pipeline import Pipeline
from teacher.pipeline_checks import check_not_quantised, check_tensors
from teacher.pipeline_files import CONFIGS, missing_files, part_variant, read_config, weight_files
from teacher.settings import CheckedSettings

NullPromptSettings = TypeVar("NullPromptSettings", bound=CheckedSettings)
"""Settings with ``null_prompt``."""

LONGEST = 77
"""Tokens that a text encoder of CLIP takes, where its configuration does not say; transformers' default."""
_ADVICE = "use null_prompt=zeros, or queries=conditioned and consensus=0, which need no text."


def check_text(folder: Path, variant: str | None = None, length: int | None = None) -> None:
    """Checks that a pipeline has a single CLIP text encoder with its tokenizer, without loading them.

    Args:
        folder: of the pipeline.
        variant: of its weight files.
        length: tokens of a prompt; None for what the tokenizer says.

    Raises:
        WeightsError: when it has not, or they are of another kind or damaged.
        ConfigError: for a prompt that is longer than the text encoder takes.
    """
    present = {
        "tokenizer": (folder / "tokenizer" / CONFIGS["tokenizer"]).is_file(),
        "text_encoder": not missing_files(folder, ("text_encoder",), variant),
    }
    for part, is_there in present.items():
        if not is_there or (folder / f"{part}_2").exists():
            raise WeightsError(
                f"Expected one text encoder and its tokenizer in {folder} but {part} is missing or not the only one; "
                + _ADVICE
            )
    config = read_config(folder, "text_encoder")
    if config.get("model_type", "clip_text_model") not in ("clip", "clip_text_model"):
        raise WeightsError(
            f"Expected a text encoder of CLIP in {folder / 'text_encoder'} but got {config['model_type']!r}; {_ADVICE}"
        )
    longest = config.get("max_position_embeddings", LONGEST)
    if isinstance(longest, int) and length is not None and length > longest:
        raise ConfigError(
            f"Expected prompt_length of at most {longest}, the text encoder's, but got {length}; lower it, or {_ADVICE}"
        )
    check_not_quantised(config, folder / "text_encoder")
    for file in weight_files(folder, "text_encoder", variant):
        check_tensors(file, others=("I64",))  # positions
    if (folder / "text_encoder" / "adapter_config.json").exists():  # transformers would follow it to other weights
        raise WeightsError(
            f"Expected plain weights in {folder / 'text_encoder'} but it has an adapter_config.json, which leads to others; "
            "merge the adapter into the weights, and remove it."
        )


def settle_null_prompt(settings: NullPromptSettings, folder: Path) -> NullPromptSettings:
    """Returns the settings with the prompt without content that the UNet of a pipeline is given: zeros for SDXL.

    SDXL is told by its second conditioning. Its two text encoders are not read: its pipelines take zeros for the empty prompt
    (``force_zeros_for_empty_prompt`` of diffusers).
    """
    if read_config(folder, "unet").get("addition_embed_type") != "text_time":
        return settings
    return settings.model_copy(update={"null_prompt": "zeros"})


def null_prompt(pipeline: Pipeline, kind: str) -> Tensor:
    """Returns a prompt (L, D) without content, on the device of the pipeline.

    Args:
        pipeline: whose prompt's length L and width D are taken.
        kind: "empty" for the text encoder's embedding of the empty text, or "zeros".

    Raises:
        WeightsError: for "empty", when the pipeline folder has no single CLIP text encoder with its tokenizer.
    """
    length, width = pipeline.prompt_length, pipeline.prompt_width
    if kind == "zeros":
        return torch.zeros(length, width, device=pipeline.vae.device)
    return encode_text(pipeline.folder, "", length, pipeline.variant).to(pipeline.vae.device)


def load_text_part(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """Returns a part of a pipeline folder, loaded by transformers without the network.

    Args:
        kind: class of transformers.
        folder: of the pipeline.
        part: name of its sub-folder, "tokenizer" or "text_encoder".
        options: further arguments of ``from_pretrained``.

    Raises:
        WeightsError: when its files are missing or damaged.
    """
    try:
        return kind.from_pretrained(folder / part, local_files_only=True, **options)
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"Expected a {kind.__name__} in {folder / part} but it cannot be loaded ({reason}); copy it again."
        ) from error


@torch.no_grad()
def encode_text(folder: Path, text: str, length: int, variant: str | None = None) -> Tensor:
    """Returns the prompt embedding (L, D) that a pipeline's own text encoder gives ``text``, padded to ``length``.

    Raises:
        WeightsError: when the pipeline folder has no single CLIP text encoder with its tokenizer, or they cannot be loaded.
        ConfigError: when ``length`` is more than the text encoder takes.
    """
    check_text(folder, variant, length)
    tokenizer = load_text_part(CLIPTokenizer, folder, "tokenizer")
    options = {"variant": part_variant(folder, "text_encoder", variant) or None, "dtype": torch.float32}
    encoder = load_text_part(CLIPTextModel, folder, "text_encoder", use_safetensors=True, **options).eval()
    check_finite(encoder.state_dict(), folder / "text_encoder")
    tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids).last_hidden_state[0]
