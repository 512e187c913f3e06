import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from distill.errors import ConfigError, WeightsError
from student import NearestNeighbour, StudentMatcher
from student.backbone import Backbone
from student.matcher import window_mass


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


def test_the_mass_of_a_window_is_the_softmax_summed_over_it():
    heatmap = torch.randn(1, 1, 6, 6)
    point = torch.tensor([[[2.5, 3.5]]])
    expected = heatmap.flatten().softmax(0).view(6, 6)[2:5, 1:4].sum()
    torch.testing.assert_close(window_mass(heatmap, point, (6, 6), 1.0)[0, 0], expected)


def test_importing_the_student_pulls_in_neither_diffusion_nor_training():
    code = "import student, sys; print([m for m in ('diffusers', 'transformers', 'lightning', 'hydra') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
