"""Everything that is trained works where its inputs are; the meta device, which refuses to mix, stands for a GPU."""

import pytest
import torch

from distill import losses
from distill.core.types import Matches
from distill.data.pairs import to_device
from distill.labels.curriculum import Curriculum
from distill.transforms.augment import Augment
from distill.transforms.warp import RandomWarp
from student import FeatureTeacher, StudentMatcher


def student(**settings) -> StudentMatcher:
    return StudentMatcher(**{"backbone": "resnet10t", "width": 16, **settings})


@pytest.fixture
def elsewhere(make_pairs):
    return to_device(make_pairs(4, size=64), "meta")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"refinement": 8},
        {"upsample": 1, "position": True},
        {"backbone_skip": True, "consensus": 3.0},
        {"backbone": "vit_tiny_patch16_224", "strides": (16,), "lora": {"rank": 2}},
    ],
    ids=str,
)
def test_a_student_answers_where_its_images_are(elsewhere, settings, training):
    network = student(**settings).to("meta").train(training)
    answer = network(elsewhere.src_img, elsewhere.trg_img, elsewhere.src_kps)
    assert {field.device.type for field in answer} == {"meta"}


def test_a_network_that_makes_labels_follows_the_images(elsewhere):
    answer = FeatureTeacher(student())(elsewhere.src_img, elsewhere.trg_img, elsewhere.src_kps)
    assert {field.device.type for field in answer} == {"meta"}


@pytest.mark.parametrize(
    "make",
    [
        losses.HeatmapKL,
        losses.CoordinateHuber,
        losses.Contrastive,
        losses.RelaxedCycle,
        lambda: losses.Equivariance(RandomWarp(flip=0.5)),
        lambda: losses.SimilarityDistillation(student()),
    ],
    ids=["heatmap", "points", "contrastive", "cycle", "warp", "similarity"],
)
def test_augmentation_curriculum_and_losses_stay_where_the_pairs_are(elsewhere, make):
    network = student().to("meta").train()
    heatmap = network(elsewhere.src_img, elsewhere.trg_img, elsewhere.src_kps).heatmap.detach().abs()
    label = Matches(elsewhere.trg_kps, torch.ones_like(elsewhere.trg_kps[..., 0]), heatmap)
    curriculum = Curriculum()
    curriculum.calibrate(torch.rand(50))
    pairs, label = Augment(flip=0.5)(elsewhere, curriculum(label, 0.3))
    prediction, src_map, trg_map = network.forward_with_descriptors(pairs.src_img, pairs.trg_img, pairs.src_kps)
    assert make()(losses.Example(pairs, label, prediction, network, src_map, trg_map)).device.type == "meta"
