"""Random miniatures of every member of the family load, and are read where they should be."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel

from distill.core.errors import WeightsError
from teacher import DiffusionFeatures, PromptOptimization
from teacher.dift import FeatureChoice

QUICK = {"steps": 2, "embeddings": 1, "crop_pool": 4, "crops": 2, "prompt_length": 7, "device": "cpu"}
QUICK |= {"queries": "conditioned", "consensus": 0.0}
THREE = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SMALL = {"sample_size": 8, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
MEMBERS = {
    "sd1": dict(cross_attention_dim=768, attention_head_dim=2),
    "sd2": dict(cross_attention_dim=1024, attention_head_dim=(1, 1, 2, 2), use_linear_projection=True),
    "turbo": dict(cross_attention_dim=1024, attention_head_dim=(1, 1, 2, 2), use_linear_projection=True),
    "sdxl": dict(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048,
        attention_head_dim=(1, 1, 2),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 20,
    ),
    "sd-mini": dict(
        sample_size=32,
        block_out_channels=(8, 16, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,
    ),
}


def save(folder, name: str) -> None:
    torch.manual_seed(0)
    shape = {"down_block_types": THREE[0], "up_block_types": THREE[1], **SMALL, **MEMBERS[name]}
    UNet2DConditionModel(**shape).save_pretrained(folder / "unet")
    if name == "sd-mini":
        channels = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
        layers = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
        AutoencoderTiny(latent_channels=4, **channels, **layers).save_pretrained(folder / "vae")
    else:
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, **kinds).save_pretrained(folder / "vae")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    kind = EulerDiscreteScheduler if name in ("turbo", "sdxl") else DDIMScheduler
    kind(**betas).save_pretrained(folder / "scheduler")


@pytest.fixture(scope="module", params=list(MEMBERS))
def member(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save(folder, request.param)
    return request.param, folder


def test_a_member_answers_and_its_width_is_read_from_the_folder(member, make_pairs):
    name, folder = member
    teacher = PromptOptimization(str(folder), layers=["up@1/4", "up@1/2:0"], **QUICK)
    pair = make_pairs(2, size=64)
    answer = teacher(pair.src_img, pair.trg_img, pair.src_kps)
    assert teacher.pipeline.prompt_width == MEMBERS[name]["cross_attention_dim"]
    assert teacher.pipeline.image_size == (128 if name == "sd-mini" else 64) == teacher.size
    assert torch.isfinite(answer.trg_kps).all() and answer.heatmap.amax() > answer.heatmap.amin()


def test_a_member_has_features_to_compare(member, make_pairs):
    name, folder = member
    matcher = DiffusionFeatures(str(folder), prompt_length=7, device="cpu", draws=2, null_prompt="zeros")
    pair = make_pairs(2, size=64)
    answer = matcher.match_pairs(pair._replace(trg_img=pair.src_img, trg_hash=pair.src_hash))
    cell = 64 / answer.heatmap.shape[-1]
    assert ((answer.trg_kps - pair.src_kps).abs() <= 1.5 * cell).all(), "an image matches itself"
    assert ((answer.confidence >= 0) & (answer.confidence <= 1)).all()


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    save(folder, "sdxl")
    return folder


def test_a_smaller_sdxl_is_not_taken_for_the_shipped_small_model(sdxl):
    matcher = DiffusionFeatures(str(sdxl), prompt_length=7, device="cpu")
    assert matcher.choice == FeatureChoice(("up@1/2:0.block",), 261)


def test_sdxl_is_given_zeros_for_the_empty_prompt_and_its_two_text_encoders_are_not_read(sdxl, tmp_path, make_pairs):
    folder = shutil.copytree(sdxl, tmp_path / "sdxl")
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        (folder / part).mkdir()  # as published, with two of each; empty, so that reading them would fail
    pair, default = make_pairs(2, size=64), {"prompt_length": 7, "device": "cpu", "draws": 0}
    told, zeros = (
        DiffusionFeatures(str(f), **default, **n) for f, n in ((folder, {}), (sdxl, {"null_prompt": "zeros"}))
    )
    assert told.fingerprint() == zeros.fingerprint() and told.fingerprint()["null_prompt"] == "zeros"
    torch.testing.assert_close(told.describe(pair.src_img), zeros.describe(pair.src_img))
    frozen = {**QUICK, "queries": "frozen", "layers": ["up@1/4"]}
    told, zeros = (
        PromptOptimization(str(f), **frozen, **n) for f, n in ((folder, {}), (sdxl, {"null_prompt": "zeros"}))
    )
    assert told.fingerprint() == zeros.fingerprint()
    assert torch.isfinite(told(pair.src_img[:1], pair.trg_img[:1], pair.src_kps[:1]).trg_kps).all()


def test_the_second_conditioning_of_sdxl_reaches_the_features(sdxl, make_pairs):
    teacher = PromptOptimization(str(sdxl), layers=["up@1/4"], **QUICK)
    unet, latents = teacher.features.model.unet, torch.randn(1, 4, 8, 8)
    time = unet.prefix(latents, 200).time
    unet.image_size = 1024
    assert not torch.allclose(unet.prefix(latents, 200).time, time)


def test_an_sdxl_whose_second_conditioning_is_of_another_kind_is_refused(sdxl, tmp_path):
    folder = tmp_path / "image"
    shutil.copytree(sdxl, folder)
    shutil.rmtree(folder / "unet")
    shape = {**SMALL, **MEMBERS["sdxl"], "addition_embed_type": "image", "encoder_hid_dim": 8}
    UNet2DConditionModel(**shape).save_pretrained(folder / "unet")
    with pytest.raises(WeightsError, match="addition_embed_type"):
        PromptOptimization(str(folder), layers=["up@1/4"], **QUICK).size  # noqa: B018


def test_an_sdxl_without_its_second_conditioning_is_refused(sdxl, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(sdxl, folder)
    shutil.rmtree(folder / "unet")
    left_out = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    shape = {k: v for k, v in {**SMALL, **MEMBERS["sdxl"]}.items() if k not in left_out}
    unet = UNet2DConditionModel(**{**shape, "addition_embed_type": None})
    unet.save_pretrained(folder / "unet")
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"addition_embed_type": null', '"addition_embed_type": "text_time"'))
    with pytest.raises(WeightsError, match="second conditioning"):
        PromptOptimization(str(folder), layers=["up@1/4"], **QUICK).size  # noqa: B018
