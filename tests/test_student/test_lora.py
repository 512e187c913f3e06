"""Low-rank adapters in a backbone."""

import math
import sys

import pytest
import torch

from distill.cli.fit_parts import started
from distill.core.errors import ConfigError
from distill.export.student_file import save_student
from student import StudentMatcher
from student.backbone import Backbone

pytest.importorskip("peft")

VIT = {"backbone": "test_vit", "strides": [16], "width": 8}
LORA = {"rank": 2, "targets": ["qkv", "fc1"]}


def filled(student):
    """Gives the adapters an effect, as training does; their second factor is zero at the start."""
    with torch.no_grad():
        for name, parameter in student.backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return student.eval()


def test_with_adapters_statistics_of_the_frozen_network_stay_fixed():
    backbone = Backbone("test_resnet", [16], lora={"rank": 2, "targets": "conv2"}).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(torch.rand(2, 3, 64, 64))
    assert before and all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "targets"), [("vit_tiny_patch16_224", ["qkv"]), ("test_resnet", ["conv1", "conv2"])], ids=str
)
def test_merged_adapters_say_what_they_said_before(name, targets):
    torch.manual_seed(0)
    student = StudentMatcher(name, [16], 8, lora={"rank": 2, "targets": targets})
    trained = [name for name, p in student.backbone.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = filled(student).describe(images)
        student.merge_adapters()
        after = student.describe(images)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-3)
    plain = StudentMatcher(name, [16], 8)
    plain.load_state_dict(student.state_dict())


def test_new_adapters_train_further_what_was_saved_with_merged_ones(tmp_path):
    torch.manual_seed(0)
    path, images = tmp_path / "student.safetensors", torch.rand(1, 3, 64, 64)
    settings = VIT | {"debias": 3, "backbone_skip": True}
    first = filled(StudentMatcher(**settings, lora=LORA))
    first.merge_adapters()
    save_student(first, {"_target_": "student.StudentMatcher", **settings, "size": 64}, path)
    second = started(StudentMatcher(**settings, lora=LORA), str(path))
    assert second.training
    weights = {name: value.clone() for name, value in second.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(second.eval().describe(images), first.describe(images), atol=1e-6, rtol=0)
    second.describe(images).square().mean().backward()
    learning = [name for name, p in second.backbone.named_parameters() if p.grad is not None and p.grad.any()]
    assert learning and all("lora_B" in name for name in learning)
    again = started(StudentMatcher(**settings, lora=LORA), None)
    again.load_state_dict(again.unmerged(weights))  # adapters that are not merged stay as they are
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (5, "student.lora as a mapping of rank, alpha, targets but got 5; write {rank: 8}, or null"),
        ("rank", "student.lora as a mapping of rank, alpha, targets but got 'rank'"),
        ([8], "student.lora as a mapping"),
        ({"rank": 2, "dropout": 0.1}, "settings of student.lora that are known but got 'dropout'; valid names: alpha"),
        ({"rnk": 2}, "but got 'rnk'; did you mean 'rank'"),
        ({"rank": 0}, "student.lora.rank of at least 1, a whole number, but got 0"),
        ({"rank": 2.5}, "student.lora.rank of at least 1, a whole number, but got 2.5"),
        ({"rank": None}, "student.lora.rank of at least 1, a whole number, but got None"),
        ({"rank": True}, "student.lora.rank of at least 1, a whole number, but got True"),
        ({"rank": 65}, "student.lora.rank of at most 64, that of the largest adapted layer, but got 65; 8 is usual"),
        ({"alpha": 0}, "student.lora.alpha as a positive number but got 0; leave it out for twice the rank"),
        ({"alpha": -1.0}, "student.lora.alpha as a positive number but got -1.0"),
        ({"alpha": math.inf}, "student.lora.alpha as a positive number but got inf"),
        ({"alpha": "8"}, "student.lora.alpha as a positive number but got '8'"),
        ({"targets": [3]}, r"student.lora.targets as names of layers but got \[3\]"),
        ({"targets": None}, "student.lora.targets as names of layers but got None"),
        ({"targets": []}, r"student.lora.targets as names of layers but got \[\]"),
        ({"targets": [""]}, "student.lora.targets as names of layers"),
        (
            {"targets": ["qkv", "nothing"]},
            "but 'nothing' names none; its linear layers are called fc1, fc2, proj, qkv, its convolutions proj",
        ),
        ({"targets": ["norm1"]}, "but 'norm1' names none"),
    ],
    ids=str,
)
def test_adapters_that_cannot_be_are_refused_in_words(lora, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Backbone("test_vit", [16], lora=lora)
    assert "\n" not in str(caught.value)


def test_of_a_network_without_linear_layers_the_convolutions_are_named():
    with pytest.raises(
        ConfigError,
        match="'all-linear' names none; its linear layers are called nothing, as it has none, its conv.* conv1",
    ):
        Backbone("test_resnet", [16], lora={})
    assert any(
        p.requires_grad for p in Backbone("test_resnet", [16], lora={"rank": 2, "targets": ["conv1"]}).parameters()
    )


@pytest.mark.parametrize("rank", [32, 5])  # peft adds the first, of which its warning says that it cannot be merged
def test_convolutions_whose_adapters_cannot_be_merged_are_refused_before_training(rank):
    with pytest.raises(
        ConfigError,
        match=r"plain convolutions, .* but layer1\.0\.conv2 has 32 groups; leave it out of student.lora.targets",
    ):
        Backbone("resnext50_32x4d", [8, 16], lora={"rank": rank, "targets": ["conv2"]})


def test_convolutions_that_standardise_their_weight_are_refused():
    """Before a merge the adapter's weight is added to the standardised one, after it to that which is standardised."""
    with pytest.raises(ConfigError, match=r"but .*\.conv1 is a ScaledStdConv2d; leave it out"):
        Backbone("test_nfnet", [16], lora={"rank": 2, "targets": ["conv1"]})


def test_without_peft_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'distill\[lora\]'"):
        Backbone("test_vit", [16], lora={})


BEIT = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("targets", [["qkv"], ["fc1", "qkv"], "qkv"], ids=str)
def test_adapters_of_layers_whose_weight_is_only_read_are_refused(targets):
    """BEiT computes with the weight of qkv itself; the adapters had no gradient, and nothing said so."""
    student = StudentMatcher("beit_base_patch16_224", [16], 8, options=BEIT, lora={"rank": 2, "targets": targets})
    with pytest.raises(ConfigError, match="only reads the weight of 'qkv'"):
        student.check_size(32)


@pytest.mark.parametrize("targets", [["fc1"], "all-linear"], ids=str)
def test_adapters_of_layers_that_are_called_are_taken(targets):
    student = StudentMatcher("beit_base_patch16_224", [16], 8, options=BEIT, lora={"rank": 2, "targets": targets})
    student.check_size(32)
    student.merge_adapters()
    student.check_size(32)
