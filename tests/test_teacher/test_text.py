"""What a real prompt takes."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from distill.core.errors import ConfigError, WeightsError
from teacher import DiffusionFeatures, PromptOptimization


def test_an_empty_prompt_wants_the_pipelines_own_text_encoder(sd1_folder):
    with pytest.raises(WeightsError, match="tokenizer is missing.*null_prompt=zeros, or queries=conditioned"):
        PromptOptimization(str(sd1_folder), device="cpu", prompt_length=7, queries="frozen")


def test_conditioned_queries_need_no_text(sd1_folder):
    assert PromptOptimization(
        str(sd1_folder), device="cpu", prompt_length=7, queries="conditioned", consensus=0.0
    ).fingerprint()


def test_the_text_encoder_is_part_of_the_fingerprint_where_it_decides_answers(root, tmp_path):
    model, other = root / "checkpoints" / "sd-mini", tmp_path / "other"
    shutil.copytree(model, other)
    file = other / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, file, metadata={"format": "pt"})

    def differ(teacher: type, **settings: str) -> bool:
        a, b = (teacher(str(f), device="cpu", **settings).fingerprint() for f in (model, other))
        return a != b

    assert differ(PromptOptimization, queries="frozen")
    assert not differ(PromptOptimization, queries="frozen", null_prompt="zeros")
    assert differ(DiffusionFeatures) and not differ(DiffusionFeatures, null_prompt="zeros")


def test_a_prompt_that_is_longer_than_the_text_encoder_takes_is_refused_when_a_teacher_is_built(root):
    for teacher, settings in ((DiffusionFeatures, {}), (PromptOptimization, {"queries": "frozen"})):
        with pytest.raises(ConfigError, match="prompt_length of at most 24, the text encoder's, but got 30"):
            teacher(str(root / "checkpoints" / "sd-mini"), device="cpu", prompt_length=30, **settings)
