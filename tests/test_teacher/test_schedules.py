"""Noise schedules and statistics of the latents, as a pipeline's folder names them."""

import shutil

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from pipeline_files import CONDITIONED, edit, load, set_scheduler

from distill.core.errors import ConfigError, WeightsError
from teacher import PromptOptimization

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


def test_the_schedule_of_stable_diffusion_is_as_published(sd1_folder):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(load(sd1_folder).alphas_cumprod.double(), (1 - betas).cumprod(0), atol=1e-5, rtol=1e-4)
    assert isinstance(DDIMScheduler.from_pretrained(sd1_folder, subfolder="scheduler"), DDIMScheduler)
