import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from distill.core.errors import ConfigError, WeightsError
from student import NearestNeighbour, StudentMatcher
from student.backbone import Backbone
from student.refinement import Refinement


def test_maps_have_the_strides_asked_for():
    backbone = Backbone("test_resnet", [4, 16])
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 4] and tuple(m.shape[1] for m in maps) == backbone.channels


def test_weights_from_a_file_are_those_of_timm(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", num_classes=3).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone("test_resnet", [32], str(tmp_path / "w.safetensors"), mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(backbone(images)[0], whole.forward_features(images * 2 - 1))


def test_weights_of_another_network_a_missing_and_a_damaged_file_are_told_apart(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        Backbone("test_resnet", [4], str(tmp_path / "none.safetensors"))
    file = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="tensors are missing"):
        Backbone("test_resnet", [4], str(file))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(WeightsError, match="whole safetensors"):
        Backbone("test_resnet", [4], str(file))


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize(
    "values",
    [
        [float("nan")] * 3,
        [float("inf"), 0.5, 0.5],
        [-0.1, 0.5, 0.5],
        [0.5, 0.5, 1.5],
        [123.675, 116.28, 103.53],
        [],
        [0.5],
        [0.5] * 4,
        0.5,
        "0.5",
        ["0.5"] * 3,
        [[0.5] * 3],
        [None, 0.5, 0.5],
        [True, 0.5, 0.5],
    ],
    ids=repr,
)
def test_a_normalisation_that_no_colours_have_is_refused(key, values):
    with pytest.raises(ConfigError, match=rf"Expected {key} of the backbone to be three numbers in \[0"):
        Backbone("test_resnet", [4], **{key: values})


def test_a_standard_deviation_of_zero_is_refused_and_the_usual_ones_are_taken():
    for values in ([0, 0, 0], [0.5, 0.5, 0.0], [1e-45] * 3):
        with pytest.raises(ConfigError, match=r"Expected std of the backbone to be three numbers in \[0.001, 1\]"):
            Backbone("test_resnet", [4], std=values)
    plain = Backbone("test_resnet", [4], mean=[0, 0, 0], std=[1 / 255] * 3)  # of networks that want bytes
    assert plain.mean.flatten().tolist() == [0, 0, 0] and plain.std.flatten().tolist() == pytest.approx([1 / 255] * 3)


def test_loaded_weights_with_an_impossible_normalisation_are_refused():
    backbone = Backbone("test_resnet", [4])
    for key, value in (("std", 0.0), ("std", float("nan")), ("mean", -1.0)):
        state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        state[key].fill_(value)
        with pytest.raises(WeightsError, match=f"{key} among them cannot"):
            backbone.load_state_dict(state)
    half = {
        name: v.half().float() if v.is_floating_point() else v
        for name, v in StudentMatcher("test_resnet").state_dict().items()
    }
    StudentMatcher("test_resnet").load_state_dict(half)


def test_strides_that_do_not_ascend_are_refused():
    with pytest.raises(ConfigError, match=r"from the finest on, \[8, 16\], but got \[16, 8\]"):
        Backbone("test_resnet", [16, 8])


def test_unknown_models_and_strides_are_named():
    with pytest.raises(ConfigError, match="resnet"):
        Backbone("resnet1O", [4])
    with pytest.raises(ConfigError, match=r"\[2, 4, 8, 16, 32\], but got \[3\]|among those of test_resnet"):
        Backbone("test_resnet", [3])


def test_an_image_matches_itself_when_features_are_compared():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    points = torch.tensor([[[18.0, 34.0], [50.0, 10.0]]])
    answer = NearestNeighbour("test_resnet", [4])(image, image, points)
    assert float((answer.trg_kps - points).norm(dim=-1).max()) <= 4
    assert float(answer.confidence.min()) > 0.9


def test_random_baselines_are_the_same_every_time_and_leave_the_callers_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (NearestNeighbour("test_resnet", [8]).backbone.network.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_students_answer_has_the_contracts_shapes_and_a_gradient():
    student = StudentMatcher("test_resnet", [4, 8], 16, position=True)
    answer = student(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), torch.rand(2, 5, 2) * 64)
    assert answer.trg_kps.shape == (2, 5, 2) and answer.heatmap.shape == (2, 5, 16, 16)
    assert ((answer.confidence >= 0) & (answer.confidence <= 1)).all()
    answer.trg_kps.sum().backward()
    assert all(p.grad is not None for p in student.fusion.parameters())


def test_importing_the_student_pulls_in_neither_diffusion_nor_training():
    code = "import student, sys; print([m for m in ('diffusers', 'transformers', 'lightning', 'hydra') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    ("name", "strides", "size"),
    [
        ("mobilenetv2_100", [8, 16, 32], 64),
        ("efficientnet_lite0", [16], 64),
        ("convnext_atto", [4, 16], 64),
        ("vit_tiny_patch16_224", [16], 64),  # a class token
        ("vit_small_patch14_reg4_dinov2", [14], 56),  # and four registers
        ("vit_small_patch16_dinov3", [16], 64),  # rotary positions
    ],
)
def test_networks_of_every_kind_give_maps_without_prefix_tokens(name, strides, size):
    backbone = Backbone(name, strides).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, size, size))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, size // s, size // s) for c, s in zip(backbone.channels, strides, strict=True)
    ]


def test_blocks_of_a_transformer_are_chosen_by_number():
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", [16], layers=[2, -1]).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, last = backbone(images)
        tokens = backbone.network.forward_features((images - backbone.mean) / backbone.std)[:, 1:]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(first, last)
    with pytest.raises(ConfigError, match="between -12 and 11 but got"):
        Backbone("vit_tiny_patch16_224", [16], layers=[12])
    with pytest.raises(ConfigError, match="layers only for a backbone of one stride"):
        Backbone("test_resnet", [16], layers=[1])


def test_an_image_that_patches_do_not_divide_is_refused_with_sizes_that_work():
    student = StudentMatcher("vit_tiny_patch16_224", [16], 8)
    with pytest.raises(ConfigError, match="patch of vit_tiny_patch16_224.*100 x 100.*data.size=96 or data.size=112"):
        student.check_size(100)
    with pytest.raises(ConfigError, match="divides"):
        student.describe(torch.rand(1, 3, 100, 100))


@pytest.mark.parametrize(
    "name", ["beit_base_patch16_224", "cait_xxs24_224", "mixer_s16_224", "nest_tiny_jx", "hiera_tiny_224"]
)
def test_a_backbone_of_one_image_size_is_refused_with_what_to_set_and_works_when_built_for_the_size(name):
    strides = [max(level["reduction"] for level in Backbone(name, [16]).network.feature_info)]
    with pytest.raises(
        ConfigError, match=f"of 128 x 128 px but {name} .*data.size=224, or student.options=.img_size: 128"
    ):
        StudentMatcher(name, strides, 8).check_size(128)
    student = StudentMatcher(name, strides, 8, options={"img_size": 128}).train()
    student.check_size(128)
    assert all(module.training for module in student.modules()), "the check leaves the mode as it was"


def test_a_distilled_transformer_takes_any_size_as_the_plain_one_does():
    for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
        StudentMatcher(name, [16], 8).check_size(96)


def test_a_backbone_that_gives_other_channels_than_timm_announces_is_refused():
    student = StudentMatcher("samvit_base_patch16", [16], 8, options={"img_size": 64})
    with pytest.raises(ConfigError, match="samvit_base_patch16 to give 768 channels, as timm says, but got 256"):
        student.check_size(64)


def test_checking_the_size_leaves_statistics_and_gradients_alone():
    student = StudentMatcher("test_resnet", [8], 8)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.check_size(64)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training and all(p.grad is None for p in student.parameters())


def test_what_tuning_fixes_stays_fixed():
    images = torch.rand(4, 3, 64, 64)
    for tuning, trained, moved in (("full", True, True), ("fixed_norm", True, False), ("frozen", False, False)):
        backbone = Backbone("test_resnet", [16], tuning=tuning).train()
        before = {name: value.clone() for name, value in backbone.network.named_buffers()}
        backbone(images)
        assert any(p.requires_grad for p in backbone.parameters()) is trained
        assert any(not torch.equal(v, before[n]) for n, v in backbone.network.named_buffers()) is moved
    with pytest.raises(ConfigError, match="did you mean 'frozen'"):
        Backbone("test_resnet", [16], tuning="forzen")  # type: ignore[arg-type]


def test_weights_of_a_transformer_are_resampled_to_another_image_size(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone("vit_tiny_patch16_224", [16], str(tmp_path / "w.safetensors"), options={"img_size": 64})
    expected = timm.layers.resample_abs_pos_embed(whole.pos_embed, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(backbone.network.pos_embed, expected)
    torch.testing.assert_close(backbone.network.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)


def test_an_untrained_refinement_changes_nothing_and_has_gradients():
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 8, refinement=6)
    query = (torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), torch.rand(2, 5, 2) * 64)
    answer, src_map, trg_map = student.forward_with_descriptors(*query)
    coarse = student.correlate(src_map, trg_map, query[2], (64, 64), (64, 64))
    torch.testing.assert_close(answer.trg_kps, coarse.trg_kps)
    assert student.refinement is not None
    torch.nn.init.ones_(student.refinement.gain)
    student(*query).trg_kps.sum().backward()
    assert all(p.grad is not None for p in student.refinement.parameters())


def test_refinement_finds_the_place_that_looks_like_the_query():
    torch.manual_seed(0)
    refinement = Refinement(16, radius_cells=2, temperature=0.01)
    torch.nn.init.ones_(refinement.gain)
    image = torch.rand(1, 3, 64, 64)
    points = torch.tensor([[[22.0, 30.0], [42.0, 34.0]]])
    off = points + torch.tensor([[[4.0, -4.0], [-8.0, 4.0]]])  # whole cells of the refinement
    found = refinement(image, image, points, off)
    assert float((found - points).norm(dim=-1).max().detach()) < 1.0 < float((off - points).norm(dim=-1).min())


def test_refinement_describes_whole_cells():
    """62 px are 16 cells, 64 px, of which none reaches beyond the image."""
    refinement, image = Refinement(4), torch.rand(1, 3, 62, 62)
    expected = refinement.network(F.interpolate(image, (64, 64), mode="bilinear") * 2 - 1)
    torch.testing.assert_close(refinement._describe(image), expected)


def test_settings_of_a_student_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match="temperature and radius_cells"):
        StudentMatcher("test_resnet", [8], 8, temperature=0)
