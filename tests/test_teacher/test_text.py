"""What a real prompt takes."""

import shutil

import pytest
import torch
from pipeline_files import edit
from safetensors.torch import load_file, save_file

from distill.core.errors import ConfigError, WeightsError
from teacher import DiffusionFeatures, PromptOptimization
from teacher.pretrain import build_text_encoder, build_tokenizer
from teacher.text import encode_text, usual_tokens


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


def test_the_tokenizer_is_part_of_the_fingerprint_where_it_decides_answers(root, tmp_path):
    model, other = root / "checkpoints" / "sd-mini", tmp_path / "other"
    shutil.copytree(model, other)

    def differing(teacher: type, **settings: str) -> set[str]:
        a, b = (teacher(str(f), device="cpu", **settings).fingerprint() for f in (model, other))
        return {name for name in a | b if a.get(name) != b.get(name)}

    config = other / "tokenizer" / "tokenizer_config.json"
    edit(config, pad_token="<|startoftext|>")
    assert differing(PromptOptimization) == differing(DiffusionFeatures) == {"empty_prompt"}
    assert differing(DiffusionFeatures, null_prompt="zeros") == set()
    edit(config, pad_token="<|endoftext|>", model_max_length=20)
    unread = {"queries": "conditioned", "consensus": 0.0}
    for teacher, settings in ((PromptOptimization, {}), (DiffusionFeatures, {}), (PromptOptimization, unread)):
        assert differing(teacher, **settings) == {"prompt_length"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bos_token_id": 0, "eos_token_id": 1, "hidden_act": "quick_gelu"}, [0, 1, 1, 1]),  # the shipped model
        ({"bos_token_id": 0, "eos_token_id": 2, "hidden_act": "quick_gelu"}, [49406, 49407, 49407, 49407]),  # SD 1.5
        ({"bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu"}, [49406, 49407, 0, 0]),  # SD 2.1
        ({}, [49406, 49407, 49407, 49407]),
    ],
)
def test_the_usual_tokens_of_an_empty_prompt(config, expected):
    assert usual_tokens(config, 4) == expected and usual_tokens(config, 2) == expected[:2]


def test_a_prompt_that_is_longer_than_the_text_encoder_takes_is_refused_when_a_teacher_is_built(root):
    for teacher, settings in ((DiffusionFeatures, {}), (PromptOptimization, {"queries": "frozen"})):
        with pytest.raises(ConfigError, match="prompt_length of at most 24, the text encoder's, but got 30"):
            teacher(str(root / "checkpoints" / "sd-mini"), device="cpu", prompt_length=30, **settings)


@pytest.fixture
def copied(root, tmp_path):
    """The text encoder and the tokenizer of the shipped pipeline, and the tensors of the former."""
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(root / "checkpoints/sd-mini" / part, tmp_path / part)
    return tmp_path, load_file(tmp_path / "text_encoder/model.safetensors")


def test_a_text_encoder_that_lacks_weights_is_refused(copied):
    """transformers draws them at random, and says so in a warning."""
    folder, tensors = copied
    del tensors["encoder.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "text_encoder/model.safetensors", {"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"all weights of a text encoder in .* but 1 are missing, first .*q_proj.weight"
    ):
        encode_text(folder, "a cat", 8)
    with pytest.raises(WeightsError, match="1 are missing"):
        build_text_encoder(build_tokenizer([], 8, str(folder)), 8, 1, str(folder))


def test_a_text_encoder_with_the_names_of_published_pipelines_gives_the_same(copied):
    folder, tensors = copied
    expected = encode_text(folder, "a cat", 8)
    named = {f"text_model.{name}": value for name, value in tensors.items()}
    length = tensors["embeddings.position_embedding.weight"].shape[0]
    named["text_model.embeddings.position_ids"] = torch.arange(length)[None]
    save_file(named, folder / "text_encoder/model.safetensors", {"format": "pt"})
    torch.testing.assert_close(encode_text(folder, "a cat", 8), expected, rtol=0, atol=0)
    assert expected.std() > 0.1
