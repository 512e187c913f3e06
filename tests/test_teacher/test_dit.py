"""Features of diffusion transformers, on random miniatures of SD3's and FLUX's architectures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from pipeline_files import edit
from safetensors.torch import save_file
from torch.nn import functional as F

from distill.__main__ import main
from distill.cli.config import compose, instantiate
from distill.core.errors import ConfigError, WeightsError
from teacher import TransformerFeatures
from teacher.dit import packed_latents

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 12, "pooled_projection_dim": 10}
MODELS = {
    "flux": lambda: FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, guidance_embeds=True, axes_dims_rope=(2, 2, 4), **HEADS
    ),
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, caption_projection_dim=16, pos_embed_max_size=8, **HEADS
    ),
    "sd35": lambda: SD3Transformer2DModel(  # Stable Diffusion 3.5's second attention, and normalised queries
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, caption_projection_dim=16, pos_embed_max_size=8,
        dual_attention_layers=(0, 1), qk_norm="rms_norm", **HEADS,
    ),
}  # fmt: skip
BLOCKS = {"flux": 3, "sd3": 1, "sd35": 1}


@pytest.fixture(scope="module", params=list(MODELS))
def member(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(folder / "transformer")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4, shift_factor=0.1, **kinds)
    vae.save_pretrained(folder / "vae")
    return request.param, folder


def build(member, **options) -> TransformerFeatures:
    name, folder = member
    return TransformerFeatures(
        str(folder),
        **{"image_size": 64, "device": "cpu", "precision": "fp32", "block": BLOCKS[name], "discard": []} | options,
    )


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def norm_of(matcher, name):
    """The norm whose features are read, found by this test's own path."""
    model = matcher._transformer
    return model.single_transformer_blocks[1].norm if name == "flux" else model.transformer_blocks[1].norm1


def test_features_are_what_leaves_the_blocks_adaptive_norm(member, image):
    name, _ = member
    matcher = build(member, draws=0, timestep=300)
    found = matcher.describe(image)[0]
    kept = []
    handle = norm_of(matcher, name).register_forward_hook(lambda _, __, output: kept.append(output[0]))
    latent = (matcher._vae.encode(image * 2 - 1).latent_dist.mean - 0.1) * matcher._vae.config.scaling_factor
    with torch.no_grad():
        matcher._run(latent)
    handle.remove()
    tokens = kept[0][0, -16:]  # the image's come last: 8 x 8 latents in patches of 2 x 2
    expected = F.normalize(tokens.T.reshape(16, 4, 4), dim=0)
    assert matcher.passes == 1 and found.shape == (16, 4, 4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_massive_channels_are_silenced_before_the_norm(member, image):
    name, _ = member
    matcher = build(member, draws=0, discard=[3, 5])
    found = matcher.describe(image)[0].flatten(1).T.numpy()
    kept = []
    norm = norm_of(matcher, name)
    handle = norm.register_forward_pre_hook(lambda _, x, named: kept.append((x[0], named["emb"])), with_kwargs=True)
    with torch.no_grad():
        matcher._run(matcher._encode(image[0]))
        shift_scale = norm.linear(F.silu(kept[0][1]))[0].numpy()
    handle.remove()
    x = kept[0][0][0, -16:].numpy().copy()
    x[:, [3, 5]] = 0
    for row, cell in zip(x, found, strict=True):
        normalised = (row - row.mean()) / np.sqrt(row.var() + 1e-6)
        expected = normalised * (1 + shift_scale[16:32]) + shift_scale[:16]
        np.testing.assert_allclose(cell, expected / np.linalg.norm(expected), atol=2e-5)


def test_hooks_are_removed_and_later_blocks_do_not_run(member, image):
    matcher = build(member, draws=3, batch_size=2)
    model, later = matcher._transformer, []
    handle = model.proj_out.register_forward_hook(lambda *_: later.append(1))
    matcher.describe(image)
    handle.remove()
    assert not later and matcher.passes == 3
    assert sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()) == 0


def test_an_image_matches_itself_and_noise_and_prompt_decide_with_it(member, make_pairs, tmp_path):
    pair = make_pairs(2, size=64)
    same = pair._replace(trg_img=pair.src_img, trg_hash=pair.src_hash)
    matcher = build(member, draws=2)
    answer = matcher.match_pairs(same)
    assert ((answer.trg_kps - pair.src_kps).abs() <= 1.5 * 16).all()
    save_file({"tokens": torch.ones(5, 12), "pooled": torch.ones(10)}, tmp_path / "prompt.safetensors")
    told = build(member, draws=2, prompt_file=str(tmp_path / "prompt.safetensors"))
    assert not torch.allclose(told.describe(pair.src_img), matcher.describe(pair.src_img), atol=1e-4)
    others = [
        told,
        build(member, draws=1),
        build(member, discard=[1]),
        build(member, seed=1),
        build(member, batch_size=1),
    ]
    prints = [str(sorted(each.fingerprint().items())) for each in (build(member), *others)]
    assert len(set(prints)) == 5 and prints[0] == prints[-1]


def test_seed_and_guidance_are_in_the_fingerprint_where_they_decide_an_answer_only(member, image):
    one, other = build(member, draws=0), build(member, draws=0, seed=1)
    assert torch.equal(one.describe(image), other.describe(image)) and one.fingerprint() == other.fingerprint()
    guided = build(member, draws=0, guidance=9.0)
    same = torch.equal(one.describe(image), guided.describe(image))
    assert same == (one.fingerprint() == guided.fingerprint()) == (not one._config.get("guidance_embeds"))


def test_the_configurations_are_part_of_the_fingerprint(member, tmp_path):
    """As the VAE's scale is, which another fingerprint of equal weights would not tell."""
    name, folder = member
    other = Path(shutil.copytree(folder, tmp_path / "pipeline"))
    moved = {"_name_or_path": "elsewhere"}
    rotary = {"axes_dims_rope": [4, 2, 2]} if name == "flux" else {"sample_size": 16}
    for part, changes, same in (
        ("vae", moved, True),
        ("vae", {"scaling_factor": 1.5305}, False),
        ("transformer", rotary, False),
    ):
        before = build((name, other)).fingerprint()
        edit(other / part / "config.json", **changes)
        assert (build((name, other)).fingerprint() == before) == same, part


def test_latents_are_packed_as_fluxs_pipeline_packs_them():
    latents = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    packed, places = packed_latents(latents)
    torch.testing.assert_close(packed, FluxPipeline._pack_latents(latents, 2, 4, 6, 8))
    expected = FluxPipeline._prepare_latent_image_ids(2, 3, 4, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(places.float(), expected)


def test_what_cannot_work_is_named_before_weights_are_read(member, sd1_folder, tmp_path):
    blocks = 5 if member[0] == "flux" else 3
    for options, message in (
        ({"block": blocks}, f"below {blocks}"),
        ({"discard": [16]}, "channels below 16"),
        ({"discard": 5}, r"discard to be a list of channels \(got 5\)"),
        ({"discard": "154"}, "discard to be a list of channels"),
        ({"image_size": "64"}, "multiple of 16 for this model but got '64'"),
        ({"image_size": 72}, "multiple of 16"),
        ({"timestep": 1001}, "at most 1000"),
        ({"draws": -1}, "draws to be at least 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(member, **options)
    with pytest.raises(WeightsError, match=r"lacks transformer/config.json"):
        TransformerFeatures(str(sd1_folder), device="cpu", precision="fp32")
    with pytest.raises(WeightsError, match='"tokens" and "pooled"'):
        build(member, prompt_file=str(tmp_path / "none.safetensors"))
    save_file({"tokens": torch.ones(5, 9), "pooled": torch.ones(10)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"tokens \(L, 12\) .* but got \(5, 9\)"):
        build(member, prompt_file=str(tmp_path / "other.safetensors"))
    save_file({"tokens": torch.full((5, 12), torch.nan), "pooled": torch.ones(10)}, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="finite weights in .*nan.safetensors but tokens holds NaN"):
        build(member, prompt_file=str(tmp_path / "nan.safetensors"))
    with pytest.raises(WeightsError, match="variant 'fp16' .* but there are plain files only"):
        build(member, variant="fp16")
    assert build(member, discard=[5, 3, 5]).fingerprint() == build(member, discard=[3, 5]).fingerprint()
    if member[0] != "flux":
        with pytest.raises(ConfigError, match="at most 128 px for this model but got 144"):
            build(member, image_size=144)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"num_attention_heads": None}, "config.json to describe a .*Transformer2DModel but"),
        ("transformer", {"num_layers": "3"}, "config.json to describe a .*Transformer2DModel but"),
        ("transformer", {"in_channels": 32}, "latents of 4 channels in .*transformer but it reads"),
        ("transformer", {"num_layers": 10**6}, "num_layers is 1000000, more than 1000"),
        ("transformer", {"joint_attention_dim": 10**12}, "joint_attention_dim is 1000000000000, more than 10000000"),
        ("vae", {"layers_per_block": 10**6}, "layers_per_block is 1000000, more than 1000"),
        ("vae", {"block_out_channels": None}, "config.json"),
        ("vae", {"scaling_factor": 0}, "scaling_factor in .* that is positive but got 0"),
    ],
)
def test_a_configuration_that_describes_no_model_is_named(member, tmp_path, part, changes, message):
    name, folder = member
    other = Path(shutil.copytree(folder, tmp_path / "pipeline"))
    edit(other / part / "config.json", **changes)
    with pytest.raises(WeightsError, match=message):
        build((name, other))


def test_a_small_file_cannot_ask_for_a_large_model(member, image, tmp_path):
    name, folder = member
    other = Path(shutil.copytree(folder, tmp_path / "pipeline"))
    edit(other / "transformer" / "config.json", joint_attention_dim=9_000_000)
    with pytest.raises(WeightsError, match=r"fit its config.json but it describes \d+ values and the files hold \d+"):
        build((name, other)).describe(image)


def test_the_configuration_builds_it(member):
    name, folder = member
    given = [f"teacher.model={folder}", "teacher.image_size=64", "teacher.precision=fp32", "teacher.discard=[]"]
    teacher = instantiate(
        compose("label", ["teacher=dit", "device=cpu", f"teacher.block={BLOCKS[name]}", *given]).teacher
    )
    assert isinstance(teacher, TransformerFeatures) and teacher.size == 64


def test_doctor_checks_a_pipeline_with_a_transformer_as_such(member, capsys):
    name, folder = member
    code = main(["doctor", f"model={folder}"])
    told = capsys.readouterr()
    assert "unet" not in told.out + told.err
    if name == "flux":  # the miniature of SD3 has no table of places for 640 px
        assert code == 0 and "no problems" in told.out
