"""Pipeline folders as users have them: variants, other schedulers, damaged and hostile files."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from distill.core.errors import ConfigError, WeightsError
from teacher import DiffusionFeatures, PromptOptimization
from teacher.pipeline import load_pipeline, locate_folder, weights_digest

QUICK = {"steps": 2, "embeddings": 1, "crop_pool": 4, "crops": 2, "prompt_length": 7, "device": "cpu"}
CONDITIONED = {**QUICK, "queries": "conditioned", "consensus": 0.0, "layers": ["up@1/4"], "confidence": ["peak_mass"]}


@pytest.fixture
def folder(sd1_folder, tmp_path) -> Path:
    return Path(shutil.copytree(sd1_folder, tmp_path / "pipeline"))


def load(folder, **options):
    return load_pipeline(str(folder), prompt_length=7, **options)


def rename_to_variant(folder: Path, variant: str, parts: tuple[str, ...] = ("unet", "vae")) -> None:
    for part in parts:
        file = folder / part / "diffusion_pytorch_model.safetensors"
        half = {name: value.half() for name, value in load_file(file).items()}
        save_file(half, file.with_suffix(f".{variant}.safetensors"), metadata={"format": "pt"})
        file.unlink()


def edit(file: Path, **changes) -> None:
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes}))


def set_scheduler(folder: Path, **config) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


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


# Noise schedules.


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        {"_class_name": "UniPCMultistepScheduler", "beta_start": 1e-4, "beta_end": 0.02, "use_flow_sigmas": True},
        {"_class_name": "UniPCMultistepScheduler", "beta_start": 1e-4, "prediction_type": "flow_prediction"},
    ],
)
def test_flow_matching_is_refused(folder, config):
    set_scheduler(folder, **config)
    with pytest.raises(WeightsError, match="flow matching.*Stable Diffusion 1.x, 2.x, SDXL"):
        PromptOptimization(str(folder), **CONDITIONED)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "num_train_timesteps": 1000},
        {"_class_name": "ScoreSdeVpScheduler", "beta_min": 0.1, "beta_max": 20},
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "DDIMScheduler", "beta_start": "low", "beta_end": 0.02, "beta_schedule": "linear"},
        {"_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "sigmoid"},
        {"_class_name": "DDIMScheduler", "trained_betas": []},
        {"_class_name": "DDIMScheduler", "trained_betas": [0.1, 2.0]},
    ],
)
def test_a_schedule_without_betas_is_refused(folder, config):
    set_scheduler(folder, **config)
    with pytest.raises(WeightsError, match=f"betas.*{config['_class_name']}"):
        PromptOptimization(str(folder), **CONDITIONED)


@pytest.mark.parametrize(
    "name", ["Evil", "EvilScheduler", None, 5, ["hostile", "Hostile"], "AutoencoderKL", "__class__"]
)
def test_a_scheduler_that_diffusers_does_not_have_is_refused(folder, name):
    set_scheduler(folder, _class_name=name, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    with pytest.raises(WeightsError, match="Expected a scheduler of diffusers .* but got"):
        PromptOptimization(str(folder), **CONDITIONED)


def test_a_scheduler_that_takes_no_betas_is_refused_although_its_file_names_some(folder):
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    set_scheduler(folder, _class_name="EDMEulerScheduler", **betas)
    with pytest.raises(WeightsError, match="betas.*EDMEulerScheduler"):
        PromptOptimization(str(folder), **CONDITIONED)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_start": 0.02, "beta_end": 1e-4},
        {"beta_start": 0.0, "beta_end": 0.0},
        {"beta_start": float("nan")},
        {"beta_start": -0.1},
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": 1},
    ],
)
def test_betas_that_no_training_has_used_are_refused(folder, changes):
    set_scheduler(
        folder,
        _class_name="DDIMScheduler",
        **{"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", **changes},
    )
    with pytest.raises(WeightsError, match="betas"):
        PromptOptimization(str(folder), **CONDITIONED)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel", "UNet2DModel", None])
def test_a_denoiser_of_another_family_is_refused(folder, name):
    edit(folder / "unet" / "config.json", _class_name=name)
    with pytest.raises(WeightsError, match=f"UNet of class UNet2DConditionModel in .*unet but got {name}.*SDXL"):
        PromptOptimization(str(folder), **CONDITIONED)


def test_trained_betas_are_the_schedule(folder):
    betas = torch.linspace(1e-3, 0.3, 50)
    set_scheduler(folder, _class_name="PNDMScheduler", num_train_timesteps=50, trained_betas=betas.tolist())
    torch.testing.assert_close(load(folder).alphas_cumprod, (1 - betas).cumprod(0))


def test_a_timestep_beyond_the_schedule_is_refused(folder, make_pairs):
    set_scheduler(folder, _class_name="DDIMScheduler", num_train_timesteps=50, trained_betas=[0.01] * 50)
    pipeline = load(folder)
    with pytest.raises(ConfigError, match="below 50.*but got 50"):
        pipeline.add_noise(torch.zeros(1), torch.zeros(1), 50)


# Latents.


def test_latents_are_normalised_by_the_mean_and_deviation_that_the_vae_names(folder):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = load(folder)
    z = plain.vae.encode(images * 2 - 1).latent_dist.mean
    mean, std = [1.0, -2.0, 0.5, 3.0], [2.0, 0.5, 1.0, 4.0]
    edit(folder / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=0.5)
    expected = torch.stack([(z[:, c] - mean[c]) * 0.5 / std[c] for c in range(4)], 1)
    torch.testing.assert_close(load(folder).encode(images), expected)


@pytest.mark.parametrize("changes", [{"latents_mean": [0.5] * 4}, {"latents_std": [2.0] * 4}])
def test_a_mean_of_the_latents_without_a_deviation_is_refused(folder, changes):
    edit(folder / "vae" / "config.json", **changes)
    with pytest.raises(WeightsError, match="latents_mean and latents_std, or neither"):
        PromptOptimization(str(folder), **CONDITIONED)


@pytest.mark.parametrize("name", ["scaling_factor", "shift_factor"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.18", True])
def test_a_scale_of_the_latents_that_is_no_number_is_refused(folder, name, value):
    edit(folder / "vae" / "config.json", **{name: value})
    with pytest.raises(WeightsError, match=f"{name} in .*config.json"):
        PromptOptimization(str(folder), **CONDITIONED)


def test_a_scale_of_the_latents_is_positive(folder):
    for value in (0, None):
        edit(folder / "vae" / "config.json", scaling_factor=value)
        with pytest.raises(WeightsError, match="scaling_factor in .*config.json .* positive"):
            PromptOptimization(str(folder), **CONDITIONED)


@pytest.mark.parametrize(
    "changes",
    [
        {"latents_mean": [0.0], "latents_std": [1.0] * 4},
        {"latents_std": [0.0] * 4, "latents_mean": [0.0] * 4},
        {"latents_mean": "no", "latents_std": [1.0] * 4},
        {"latents_mean": [float("nan")] * 4, "latents_std": [1.0] * 4},
        {"latents_std": [True] * 4, "latents_mean": [0.0] * 4},
    ],
)
def test_statistics_of_the_latents_that_do_not_fit_are_refused(folder, changes):
    edit(folder / "vae" / "config.json", **changes)
    with pytest.raises(WeightsError, match=f"{next(iter(changes))}.*4 numbers"):
        load(folder)


def test_an_inpainting_unet_is_refused(folder):
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    with pytest.raises(WeightsError, match="4 channels.*reads 9.*inpainting"):
        PromptOptimization(str(folder), **CONDITIONED)


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
    "name", ["text_encoder/model.safetensors", "text_encoder/config.json", "tokenizer/tokenizer.json"]
)
def test_a_cut_file_of_the_text_side_is_named(root, tmp_path, name):
    folder = Path(shutil.copytree(root / "checkpoints" / "sd-mini", tmp_path / "mini"))
    file = folder / name
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError, match=rf"{Path(name).parent}.*copy it again"):
        DiffusionFeatures(str(folder), device="cpu")._null_prompt  # noqa: B018


def write_shards(part: Path, name: str, index: str) -> list[Path]:
    file = part / "diffusion_pytorch_model.safetensors"
    weights = list(load_file(file).items())
    file.unlink()
    half, files, where = len(weights) // 2, [], {}
    for i, some in enumerate((weights[:half], weights[half:])):
        files.append(part / f"{name.format(f'-0000{i + 1}-of-00002')}.safetensors")
        save_file(dict(some), files[-1], metadata={"format": "pt"})
        where |= {key: files[-1].name for key, _ in some}
    (part / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return files


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
    assert weights_digest(root / "checkpoints" / "sd-mini", True) == "8bcd9f5d169d23729db3eadf7f13a400"


def test_the_schedule_of_stable_diffusion_is_as_published(sd1_folder):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(load(sd1_folder).alphas_cumprod.double(), (1 - betas).cumprod(0), atol=1e-5, rtol=1e-4)
    assert isinstance(DDIMScheduler.from_pretrained(sd1_folder, subfolder="scheduler"), DDIMScheduler)
