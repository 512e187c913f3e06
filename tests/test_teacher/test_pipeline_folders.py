"""Pipeline folders as users have them: variants, single files, and the hub's cache."""

import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from pipeline_files import CONDITIONED, load, rename_to_variant, write_shards
from safetensors.torch import load_file, save_file

from distill.core.errors import WeightsError
from teacher import DiffusionFeatures, PromptOptimization
from teacher.pipeline import locate_folder

# Variants.


def test_half_precision_files_are_read_where_there_are_no_others(folder, sd1_folder):
    rename_to_variant(folder, "fp16")
    torch.testing.assert_close(
        load(folder).unet.conv_in.weight, load(sd1_folder).unet.conv_in.weight, atol=1e-3, rtol=1e-3
    )
    assert load(folder).unet.dtype == torch.float32


def test_a_variant_is_read_where_it_is_asked_for(folder, make_pairs):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    zeros = {name: torch.zeros_like(value) for name, value in load_file(file).items()}
    save_file(zeros, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    assert float(load(folder, variant="fp16").unet.conv_in.weight.abs().sum()) == 0
    assert float(load(folder).unet.conv_in.weight.abs().sum()) > 0
    for teacher, settings in (
        (PromptOptimization, CONDITIONED),
        (DiffusionFeatures, {"null_prompt": "zeros", "prompt_length": 7}),
    ):
        half, full = (teacher(str(folder), variant=v, **settings) for v in ("fp16", None))
        assert half.fingerprint()["weights"] != full.fingerprint()["weights"]
        assert float(half.pipeline.unet.conv_in.weight.abs().sum()) == 0


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(folder):
    rename_to_variant(folder, "fp16")
    with pytest.raises(WeightsError, match=r"variant 'bf16'.*there are fp16"):
        PromptOptimization(str(folder), variant="bf16", **CONDITIONED)


def test_of_several_variants_one_has_to_be_named(folder):
    for variant in ("fp16", "ema"):
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        shutil.copy(file, file.with_suffix(f".{variant}.safetensors"))
    file.unlink()
    with pytest.raises(WeightsError, match="several variants .ema, fp16.*variant="):
        load(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model{}.fp16", "diffusion_pytorch_model.fp16{}"])
def test_both_names_of_sharded_variants_are_read(folder, name):
    write_shards(folder / "unet", name, "diffusion_pytorch_model.safetensors.index.fp16.json")
    assert float(load(folder).unet.conv_in.weight.abs().sum()) > 0


# Other formats and layouts.


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_gets_the_command_that_converts_it(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"weights")
    with pytest.raises(WeightsError, match=r"single file.*from_single_file\(.*save_pretrained"):
        PromptOptimization(str(file), **CONDITIONED)


def test_a_cache_folder_stands_for_its_snapshot(sd1_folder, tmp_path):
    cache = tmp_path / "models--org--name"
    for revision in ("aaaa", "bbbb"):
        shutil.copytree(sd1_folder, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbbb\n")
    assert load(cache).folder == cache / "snapshots" / "bbbb"
    (cache / "refs" / "main").write_bytes(b"\xff\0")
    with pytest.raises(WeightsError, match="several snapshots"):
        load(cache)


def test_a_cache_folder_without_a_snapshot_says_what_it_is(tmp_path):
    cache = tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    with pytest.raises(WeightsError, match="cache folder of the hub.*org/name"):
        load(cache)


SD15 = ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_a_hub_id_one_kind_of_weights_is_downloaded(variant, folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("teacher.pipeline_files.snapshot_download", snapshot_download)
    locate_folder("org/name", variant)
    hub = ["model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "safety_checker/model.safetensors"]
    hub += [f"{p}/{n}{v}{s}" for p, n in SD15 for v in ("", ".fp16", ".non_ema") for s in (".safetensors", ".bin")]
    wanted = {f"{p}/{n}{'.fp16' if variant else ''}.safetensors" for p, n in SD15}
    wanted |= {"tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "scheduler/scheduler_config.json"}
    assert set(filter_repo_objects([*hub, *wanted], allow_patterns=asked)) == wanted


def test_the_home_folder_may_be_abbreviated(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/pipeline").folder == folder
