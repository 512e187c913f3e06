"""Text encoder and tokenizer of a pipeline: checks, loading, and the embedding of a text."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from distill.core.errors import ConfigError, WeightsError, in_one_line
from distill.core.weights import check_finite, check_none_missing
from teacher.pipeline import Pipeline
from teacher.pipeline_checks import check_not_quantised, check_tensors, settle_prompt_length
from teacher.pipeline_files import CONFIGS, missing_files, part_variant, read_config, weight_files
from teacher.settings import CheckedSettings

NullPromptSettings = TypeVar("NullPromptSettings", bound=CheckedSettings)
"""Settings with ``null_prompt``."""

LONGEST = 77
"""Tokens that a text encoder of CLIP takes, where its configuration does not say; transformers' default."""
START, END = 49406, 49407
"""Tokens of CLIP's vocabulary, as transformers has them by default."""
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


def prompt_fingerprint(folder: Path, length: int | None, reads_text: bool) -> dict[str, str]:
    """Returns what a fingerprint says of a prompt, beside the digest of :func:`teacher.pipeline_files.weights_digest`.

    What follows from that digest is not written out, so that labels made before are valid: the length is "the model's" where it is the
    text encoder's, or 77 where none is read. The tokens of the empty prompt are named, by a digest, where they are
    not :func:`usual_tokens`.

    Args:
        folder: of the pipeline.
        length: tokens of a prompt; None for what the tokenizer says.
        reads_text: whether the text encoder's embedding of the empty prompt decides answers.

    Raises:
        ConfigError: for a length that is not known.
        WeightsError: when the tokenizer cannot be loaded.
    """
    config = read_config(folder, "text_encoder") if reads_text else {}
    settled = settle_prompt_length(length, folder)
    told = {"prompt_length": str(settled)}
    if length is None and settled == config.get("max_position_embeddings", LONGEST):
        told["prompt_length"] = "the model's"
    if reads_text and (tokens := tokenize(folder, "", settled)[0].tolist()) != usual_tokens(config, settled):
        told["empty_prompt"] = hashlib.blake2b(str(tokens).encode(), digest_size=16).hexdigest()
    return told


def usual_tokens(config: dict[str, Any], length: int) -> list[int]:
    """Returns the tokens of the empty prompt that go with a text encoder's configuration: its start, its end, and padding.

    OpenAI's CLIP, told by its activation, is padded with the end, OpenCLIP with 0. An end of 2 is a mistake in many
    configurations, which transformers corrects too; start and end are then those of CLIP's vocabulary.
    """
    start, end = config.get("bos_token_id", START), config.get("eos_token_id", END)
    if end == 2:
        start, end = START, END
    padding = end if config.get("hidden_act", "quick_gelu") == "quick_gelu" else 0
    return [start, end, *[padding] * length][:length]


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
        reason = in_one_line(error)
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
    tokens = tokenize(folder, text, length)
    encoder = load_text_encoder(folder, part_variant(folder, "text_encoder", variant) or None).eval()
    return encoder(tokens).last_hidden_state[0]


def load_text_encoder(folder: Path, variant: str | None = None) -> CLIPTextModel:
    """Returns the text encoder of a pipeline folder in single precision.

    Raises:
        WeightsError: when its files are missing or damaged, or lack weights, which transformers would draw at random.
    """
    options = {"use_safetensors": True, "variant": variant, "dtype": torch.float32, "output_loading_info": True}
    encoder, info = load_text_part(CLIPTextModel, folder, "text_encoder", **options)
    check_none_missing(info["missing_keys"], "a text encoder", folder / "text_encoder", f"copy it again, or {_ADVICE}")
    check_finite(encoder.state_dict(), folder / "text_encoder")
    return encoder


def tokenize(folder: Path, text: str, length: int) -> Tensor:
    """Returns the tokens (1, L) that a pipeline's own tokenizer makes of ``text``, padded to ``length``.

    Raises:
        WeightsError: when it cannot be loaded.
    """
    tokenizer = load_text_part(CLIPTokenizer, folder, "tokenizer")
    return tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
