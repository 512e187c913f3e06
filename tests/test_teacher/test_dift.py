"""Diffusion features: layers, weights of another file, and passes without noise."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from distill.core.errors import ConfigError, WeightsError
from distill.core.geometry import sample_at
from distill.labels.cached import Cached
from student import FusedFeatures
from teacher import DiffusionFeatures

LAYERS = ["up@1/4", "up@1/2.cross_q"]


def build(folder, **settings) -> DiffusionFeatures:
    return DiffusionFeatures(str(folder), device="cpu", **{"prompt_length": 7, "null_prompt": "zeros"} | settings)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def other_weights(sd1_folder, tmp_path_factory):
    """All weights of the pipeline's UNet, each a little larger."""
    file = tmp_path_factory.mktemp("clean") / "unet.safetensors"
    weights = load_file(sd1_folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({key: 1.1 * value for key, value in weights.items()}, file)
    return file


def straightforward(folder, image, weights=None) -> torch.Tensor:
    """The features of a noise-free image, with hooks of this test's own on modules that are named here."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    if weights is not None:
        unet.load_state_dict(load_file(weights))
    kept = {}
    modules = {"block": unet.up_blocks[1]}
    modules |= {f"q{i}": unet.up_blocks[2].attentions[i].transformer_blocks[0].attn2.to_q for i in range(2)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: kept.update({name: output}))
    latent = build(folder).pipeline.encode(image)
    with torch.no_grad():
        unet(latent, 261, torch.zeros(1, 7, 24))
    maps = [kept["block"][0]] + [kept[f"q{i}"][0].T.reshape(16, 4, 4) for i in range(2)]
    assert [tuple(feature_map.shape) for feature_map in maps] == [(32, 4, 4)] + [(16, 4, 4)] * 2
    unit = [feature_map / feature_map.square().sum(0).sqrt() for feature_map in maps]
    return torch.cat(unit) / 3**0.5  # three vectors of length 1


def test_without_noise_one_pass_describes_an_image_by_layers_of_equal_weight(sd1_folder, image):
    matcher = build(sd1_folder, layers=LAYERS, draws=0)
    found = matcher.describe(image)[0]
    assert matcher.passes == 1
    torch.testing.assert_close(found, straightforward(sd1_folder, image), atol=1e-5, rtol=1e-4)


def test_weights_of_another_file_are_used(sd1_folder, image, other_weights):
    found = build(sd1_folder, layers=LAYERS, draws=0, unet_weights=str(other_weights)).describe(image)[0]
    plain = build(sd1_folder, layers=LAYERS, draws=0).describe(image)[0]
    torch.testing.assert_close(found, straightforward(sd1_folder, image, other_weights), atol=1e-5, rtol=1e-4)
    assert (found - plain).abs().max() > 1e-3


def test_layers_of_different_grids_are_joined_on_the_finest(sd1_folder, image):
    found = build(sd1_folder, layers=["up@1/8", "mid@1/8"], draws=0).describe(image)[0]
    coarse = build(sd1_folder, layers=["mid@1/8"], draws=0).describe(image)[0]
    assert found.shape == (64, 2, 2) and coarse.shape == (32, 1, 1)
    torch.testing.assert_close(found.square().sum(0), torch.ones(2, 2))
    # The decoder's part comes after the middle's in the order of layers; each has half of the squared length.
    torch.testing.assert_close(found[:32] * 2**0.5, F.interpolate(coarse[None], (2, 2))[0])


def test_draws_are_averaged_and_counted(sd1_folder, image):
    matcher = build(sd1_folder, draws=3, batch_size=2)
    matcher.describe(image.expand(2, -1, -1, -1))
    assert matcher.passes == 3, "an image is described once"
    alone, all_at_once = (build(sd1_folder, draws=3, batch_size=n).describe(image) for n in (1, 8))
    torch.testing.assert_close(alone, all_at_once, atol=1e-5, rtol=1e-4)


def test_what_decides_an_answer_is_in_the_fingerprint(sd1_folder, other_weights):
    plain = build(sd1_folder).fingerprint()
    assert plain["layers"] == "up@1/4:0.block" and plain["timestep"] == "261"
    assert build(sd1_folder, layers="up@1/4:0.block", timestep=261).fingerprint() == plain
    others = ({"layers": LAYERS}, {"draws": 0}, {"timestep": 50}, {"unet_weights": str(other_weights)})
    assert len({str(build(sd1_folder, **other).fingerprint()) for other in others} | {str(plain)}) == 5
    assert build(sd1_folder, batch_size=1).fingerprint() == plain


def test_the_seed_is_in_the_fingerprint_where_it_decides_an_answer_only(sd1_folder, image):
    clean, again = (build(sd1_folder, draws=0, seed=seed) for seed in (0, 1))
    assert torch.equal(clean.describe(image), again.describe(image))
    assert clean.fingerprint() == again.fingerprint()
    assert FusedFeatures({"a": clean}).fingerprint() == FusedFeatures({"a": again}).fingerprint()
    noisy, other = (build(sd1_folder, draws=1, seed=seed) for seed in (0, 1))
    assert not torch.equal(noisy.describe(image), other.describe(image))
    assert noisy.fingerprint() != other.fingerprint() and noisy.fingerprint()["seed"] == "0"


def test_settings_and_layers_that_cannot_work_are_refused_before_weights_are_read(sd1_folder):
    for settings, message in (
        ({"draws": -1}, "draws to be at least 0"),
        ({"temperature": 0.0}, "temperature to be above 0"),
        ({"layers": ["up@1/2:9.cross_q"]}, "there are: down@1/1"),
        ({"precision": "fp16"}, "fp16, which it is slow at"),
        ({"image_size": 72}, "multiple of 64 for this model but got 72"),
        ({"image_size": 0}, "multiple of 64 for this model but got 0"),
        ({"image_size": "64"}, "multiple of 64 for this model but got '64'"),
        ({"image_size": 64.0}, "multiple of 64 for this model but got 64.0"),
        ({"prompt_length": 1}, "whole number from 2 to 9999 but got 1"),
        ({"prompt_length": "7"}, "whole number from 2 to 9999 but got '7'"),
        ({"timestep": 1000, "draws": 0}, "timestep to be below 1000 for this model but got 1000"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(sd1_folder, **settings)


def test_weights_of_another_unet_are_refused_before_weights_are_read(sd1_folder, other_weights, tmp_path):
    weights = load_file(other_weights)
    first = sorted(weights)[0]
    cases = {
        "1 tensors are missing, such as " + first: {key: value for key, value in weights.items() if key != first},
        "1 tensors are unknown, such as extra": weights | {"extra": torch.zeros(1)},
        "1 tensors have another shape, such as " + first: weights | {first: torch.zeros(3)},
        "not .* quantised|are not, first": weights | {first: torch.zeros(weights[first].shape, dtype=torch.int8)},
    }
    for number, (message, content) in enumerate(cases.items()):
        save_file(content, tmp_path / f"{number}.safetensors")
        with pytest.raises(WeightsError, match=message):
            build(sd1_folder, unet_weights=str(tmp_path / f"{number}.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(other_weights.read_bytes()[:-100])
    for name, message in (
        ("cut.safetensors", "truncated or damaged"),
        ("none.safetensors", "there is none at"),
        ("unet.ckpt", "to be a .safetensors file"),
    ):
        with pytest.raises(WeightsError, match=message):
            build(sd1_folder, unet_weights=str(tmp_path / name))


def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(sd1_folder, image, other_weights, tmp_path):
    weights = load_file(other_weights)
    name = sorted(weights)[3]
    for value in (float("nan"), float("inf")):
        save_file(weights | {name: torch.full_like(weights[name], value)}, tmp_path / "unet.safetensors")
        with pytest.raises(
            WeightsError, match=f"finite weights in .*unet.safetensors but {name} holds NaN or infinity"
        ):
            build(sd1_folder, unet_weights=str(tmp_path / "unet.safetensors")).describe(image)


def test_weights_that_are_finite_in_their_file_only_are_refused(sd1_folder, image, other_weights, tmp_path):
    save_file(
        {key: 1e300 * value.double() for key, value in load_file(other_weights).items()}, tmp_path / "unet.safetensors"
    )
    with pytest.raises(WeightsError, match="finite weights in .*unet.safetensors but .* holds NaN or infinity"):
        build(sd1_folder, unet_weights=str(tmp_path / "unet.safetensors")).describe(image)


def test_features_that_are_not_finite_are_refused(sd1_folder, image, other_weights, tmp_path):
    save_file({key: 1e8 * value for key, value in load_file(other_weights).items()}, tmp_path / "unet.safetensors")
    with pytest.raises(WeightsError, match="finite features of the model in precision fp32 but got NaN or infinity"):
        build(sd1_folder, unet_weights=str(tmp_path / "unet.safetensors")).describe(image)


def test_weights_that_are_not_here_and_cannot_be_downloaded_are_named(sd1_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="could not be downloaded"):
        build(sd1_folder, unet_weights="CompVis/nothing-of-this-name/unet.safetensors")


def test_a_label_is_the_distribution_whose_window_the_answer_is_the_mean_of(sd1_folder, make_pairs, tmp_path):
    matcher = build(sd1_folder, temperature=0.1, radius_cells=100.0, draws=0)
    pair, cached = make_pairs(2, size=64), Cached(tmp_path, matcher)
    answer = cached.match_pairs(pair)
    src, trg = (matcher.describe(images)[0].double() for images in (pair.src_img, pair.trg_img))
    side = trg.shape[-1]
    centres = (np.arange(side) + 0.5) * 64 / side
    for query, heatmap, found in zip(pair.src_kps[0], answer.heatmap[0], answer.trg_kps[0], strict=True):
        descriptor = sample_at(src[None], query[None, None].double(), (64, 64))[0, 0]
        scores = np.exp(np.einsum("c,chw->hw", (descriptor / descriptor.norm()).numpy(), trg.numpy()) / 0.1)
        expected = scores / scores.sum()
        np.testing.assert_allclose(heatmap.numpy() / heatmap.sum().item(), expected, atol=2e-4)
        mean = [(expected.sum(0) * centres).sum(), (expected.sum(1) * centres).sum()]  # x, y; the window is the map
        np.testing.assert_allclose(found.numpy(), mean, atol=0.02)
    assert len(cached.store) == 2
