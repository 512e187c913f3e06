"""A pipeline's text side, for the few uses that want a real prompt."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from distill.core.errors import WeightsError
from teacher.pipeline import Pipeline

_FILES = {"tokenizer": ("tokenizer_config.json",), "text_encoder": ("config.json", "model.safetensors")}


def check_text(folder: Path) -> None:
    """Raises a :class:`WeightsError` unless the pipeline has a single CLIP text encoder with its tokenizer."""
    for part, files in _FILES.items():
        if not all((folder / part / file).is_file() for file in files) or (folder / f"{part}_2").exists():
            raise WeightsError(
                f"Expected one text encoder and its tokenizer in {folder} but {part} is missing or not the only one; "
                "use null_prompt=zeros, or queries=conditioned and consensus=0, which need no text."
            )


def null_prompt(pipeline: Pipeline, kind: str) -> Tensor:
    """Returns a prompt (L, D) that says nothing: what the text encoder makes of no text ("empty"), or "zeros"."""
    length, width = pipeline.prompt_length, pipeline.prompt_width
    prompt = torch.zeros(length, width) if kind == "zeros" else encode_text(pipeline.folder, "", length)
    return prompt.to(pipeline.vae.device)


@torch.no_grad()
def encode_text(folder: Path, text: str, length: int) -> Tensor:
    """Returns the prompt embedding (L, D) that a pipeline's own text encoder gives ``text``, padded to ``length``.

    Raises:
        WeightsError: when the pipeline folder has no single CLIP text encoder with its tokenizer.
    """
    check_text(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval().float()
    tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids).last_hidden_state[0]
