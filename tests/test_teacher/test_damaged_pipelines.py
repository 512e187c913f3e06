"""Pipeline folders that are damaged, quantised or hostile."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from pipeline_files import CONDITIONED, edit, load, write_shards
from safetensors.torch import load_file, save_file

from distill.core.errors import WeightsError
from teacher import DiffusionFeatures, PromptOptimization
from teacher.pipeline import load_pipeline, weights_digest

# Damaged files.


def test_tensors_of_mixed_precision_are_brought_to_one(folder, make_pairs):
    for part in ("unet", "vae"):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        mixed = {n: v.half() if i % 2 else v for i, (n, v) in enumerate(load_file(file).items())}
        save_file(mixed, file, metadata={"format": "pt"})
    teacher, pair = PromptOptimization(str(folder), **CONDITIONED), make_pairs(1, size=64)
    assert torch.isfinite(teacher(pair.src_img, pair.trg_img, pair.src_kps).trg_kps).all()
    assert {p.dtype for p in teacher.pipeline.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, part, value):
    file = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"finite weights in .*{part} but {name} holds"):
        load(folder)


def test_quantised_tensors_are_refused(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"] = (weights["conv_in.weight"] * 100).to(torch.int8)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"conv_in\.weight.*I8"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"],
)
@pytest.mark.parametrize("content", ['{"_class_name": "U', "[]", "\xff\xfe"])
def test_a_damaged_configuration_is_named(folder, name, content):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.encode("latin1"))
    with pytest.raises(WeightsError, match=rf"{name}.*copy it again"):
        load_pipeline(str(folder))


@pytest.mark.parametrize(
    "changes", [{"block_out_channels": None}, {"block_out_channels": [7, 7, 7, 7]}, {"act_fn": "x"}]
)
def test_a_configuration_of_which_no_unet_can_be_built_is_named(folder, changes):
    edit(folder / "unet" / "config.json", **changes)
    with pytest.raises(WeightsError, match="unet"):
        load(folder)


@pytest.mark.parametrize(
    "wanted",
    [
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 10},
        {"encoder_hid_dim_type": "text_proj"},
        {"time_cond_proj_dim": 8},
        {"dual_cross_attention": True},
    ],
)
def test_a_unet_that_wants_more_than_a_prompt_and_a_timestep_is_refused(folder, wanted):
    """Without its class, such a UNet was optimised as if it had none."""
    edit(folder / "unet" / "config.json", **wanted)
    with pytest.raises(WeightsError, match=rf"but it also wants \{{'{next(iter(wanted))}'"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["text_encoder/model.safetensors", "text_encoder/config.json", "tokenizer/tokenizer.json"]
)
def test_a_cut_file_of_the_text_side_is_named(root, tmp_path, name):
    folder = Path(shutil.copytree(root / "checkpoints" / "sd-mini", tmp_path / "mini"))
    file = folder / name
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError, match=rf"{Path(name).parent}.*copy it again"):
        DiffusionFeatures(str(folder), device="cpu")._null_prompt  # noqa: B018


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_piece_of_sharded_weights_is_named(folder, missing):
    files = write_shards(folder / "unet", "diffusion_pytorch_model{}", "diffusion_pytorch_model.safetensors.index.json")
    assert load(folder)
    files[missing].unlink()
    with pytest.raises(WeightsError, match=f"lacks unet/{files[missing].name}"):
        PromptOptimization(str(folder), **CONDITIONED)


def test_sharded_weights_without_their_index_are_refused(folder):
    write_shards(folder / "vae", "diffusion_pytorch_model{}", "diffusion_pytorch_model.safetensors.index.json")
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks vae/diffusion_pytorch_model\.safetensors\.index\.json"):
        PromptOptimization(str(folder), **CONDITIONED)


def test_an_index_does_not_lead_out_of_its_folder(folder):
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    write_shards(folder / "unet", "diffusion_pytorch_model{}", index.name)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(WeightsError, match=r"index\.json"):
        load(folder)


# Hostile files.


class Writes:
    """A pickle that writes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "code ran")


def plant_code(folder: Path, trace: Path) -> None:
    code = f"from pathlib import Path\nPath({str(trace)!r}).write_text('code ran')\n"
    for place in (".", "unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "hostile.py").write_text(code + "class Hostile: pass\n")
    for config in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        edit(folder / config, auto_map={"AutoModel": "hostile.Hostile"}, trust_remote_code=True)
    index = {"_class_name": ["hostile", "Hostile"], "unet": ["hostile", "Hostile"], "custom_pipeline": "hostile"}
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        (folder / part / f"{name}.bin").write_bytes(pickle.dumps(Writes(trace)))
        (folder / part / f"{name}.ckpt").write_bytes(pickle.dumps(Writes(trace)))


def test_code_and_pickles_in_a_pipeline_folder_are_not_run(folder, tmp_path, make_pairs):
    trace, pair = tmp_path / "trace", make_pairs(1, size=64)
    plant_code(folder, trace)
    answer = PromptOptimization(str(folder), **CONDITIONED)(pair.src_img, pair.trg_img, pair.src_kps)
    assert torch.isfinite(answer.trg_kps).all() and not trace.exists()


def test_pickled_weights_alone_are_refused_and_not_read(folder, tmp_path):
    trace = tmp_path / "trace"
    plant_code(folder, trace)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks unet/\*\.safetensors.*safetensors"):
        PromptOptimization(str(folder), **CONDITIONED)
    assert not trace.exists()


def test_a_text_encoder_that_leads_elsewhere_is_refused(root, tmp_path):
    folder, trace = Path(shutil.copytree(root / "checkpoints" / "sd-mini", tmp_path / "mini")), tmp_path / "trace"
    plant_code(folder, trace)
    assert DiffusionFeatures(str(folder), device="cpu")._null_prompt.isfinite().all() and not trace.exists()
    adapter = {
        "base_model_name_or_path": "someone/else",
        "peft_type": "LORA",
        "auto_mapping": {"parent_library": "hostile"},
    }
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        DiffusionFeatures(str(folder), device="cpu")
    (folder / "text_encoder" / "adapter_config.json").unlink()
    edit(folder / "text_encoder" / "config.json", quantization_config={"quant_method": "quanto"})
    with pytest.raises(WeightsError, match="quantization_config"):
        DiffusionFeatures(str(folder), device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_quantised_part_is_refused(folder, part):
    edit(folder / part / "config.json", quantization_config={"quant_method": "torchao", "quant_type": "int8wo"})
    with pytest.raises(WeightsError, match=f"{part}.*quantization_config"):
        load(folder)


def test_the_digest_of_the_shipped_model_is_the_one_its_labels_name(root):
    assert weights_digest(root / "checkpoints" / "sd-mini", True) == "3111ea6a4ac5e2d3cbb2916bdc018305"
