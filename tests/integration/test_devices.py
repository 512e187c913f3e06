"""Everything that is trained works where its inputs are; the meta device, which refuses to mix, stands for a GPU.

It also stands for a GPU without float64, as Apple's are.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill import losses
from distill.core.precision import in_double
from distill.core.types import Matches
from distill.core.vote import vote
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import to_device
from distill.labels.curriculum import Curriculum
from distill.labels.store import LabelStore
from distill.matchers.kept_heatmaps import Heatmaps
from distill.matchers.stored_predictions import Predictions
from distill.metrics.given_candidates import GivenCandidates, best_candidate, same_group
from distill.metrics.pck import PCK
from distill.metrics.pck_dagger import PCKDagger
from distill.transforms.augment import Augment
from distill.transforms.warp import RandomWarp
from student import FeatureTeacher, StudentMatcher


def student(**settings) -> StudentMatcher:
    return StudentMatcher(**{"backbone": "resnet10t", "width": 16, **settings})


class NoDoubles(TorchDispatchMode):
    """Refuses tensors of double precision on the meta device."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor) and value.device.type == "meta" and value.dtype == torch.float64:
                raise TypeError(f"{function} makes a float64 on a device that has none")
        return made


@pytest.fixture(autouse=True)
def no_doubles(monkeypatch):
    monkeypatch.setattr("distill.core.precision.SINGLE_ONLY", ("meta",))
    with NoDoubles():
        yield


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


def test_the_stand_in_refuses_double_precision_as_apples_gpus_do():
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, device="meta").double()
    assert in_double(torch.zeros(2, device="meta")).dtype == torch.float32
    assert in_double(torch.zeros(2)).dtype == torch.float64


def test_scores_and_votes_are_counted_where_there_is_no_double_precision(elsewhere):
    metric = PCK((0.05, 0.10)).to("meta")
    metric.update(elsewhere.trg_kps, elsewhere.trg_kps, elsewhere.kps_mask, elsewhere.pck_threshold)
    assert metric.image_sum.device.type == "meta" and metric.image_sum.dtype == torch.float32
    found = vote(torch.rand(3, 4, 2, device="meta"), torch.rand(3, 4, device="meta"), sigma=2.0)
    assert {field.device.type for field in found} == {"meta"}
    on_cpu = PCK((0.05, 0.10)).to("cpu")
    assert on_cpu.image_sum.dtype == on_cpu.half().image_sum.dtype == torch.float64


def test_pairs_hold_nothing_that_such_a_gpu_cannot_take(make_pairs):
    for pair in (make_pairs(4, size=64), ShapesPairs("val", 2, size=32)[0]):
        assert not [name for name, value in pair._asdict().items() if getattr(value, "dtype", None) == torch.float64]


class OnApple(torch.Tensor):
    """A tensor on a CPU that says what one of Apple's GPUs says to double precision, until it is brought to the CPU."""

    def double(self) -> torch.Tensor:
        """Refuses."""
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self) -> torch.Tensor:
        """Returns a tensor that takes double precision."""
        return self.as_subclass(torch.Tensor)


def on_apple(values):
    """Returns a batch or an answer whose tensors are all there."""
    there = (value.as_subclass(OnApple) if isinstance(value, torch.Tensor) else value for value in values)
    return type(values)(*there)


def test_answers_of_a_gpu_without_double_precision_are_stored_and_kept(make_pairs, tmp_path):
    pairs = make_pairs(3, size=64)
    answer = Matches(pairs.trg_kps, torch.ones(pairs.kps_mask.shape), torch.rand(*pairs.kps_mask.shape, 8, 8))
    there = on_apple(pairs), on_apple(answer)
    store = LabelStore(tmp_path, {"method": "any"})
    store.add(*there, pairs.kps_mask)
    found, known = store.lookup(pairs)
    assert bool(known[pairs.kps_mask].all())
    torch.testing.assert_close(found.trg_kps[pairs.kps_mask], pairs.trg_kps[pairs.kps_mask])
    kept, expected = Predictions("any"), Predictions("any")
    for predictions, (batch, given) in ((kept, there), (expected, (pairs, answer))):
        predictions.add(batch, given.trg_kps, given.confidence, None, Heatmaps.of(given.heatmap, batch))
    for name in ("src_point", "trg_point", "confidence", "frame"):
        assert all(map(np.array_equal, getattr(kept, name), getattr(expected, name))), name


def test_further_scores_are_counted_where_there_is_no_double_precision(elsewhere):
    dagger, given = PCKDagger().to("meta"), GivenCandidates().to("meta")
    dagger.update(
        elsewhere.trg_kps,
        elsewhere.trg_kps,
        elsewhere.kps_mask,
        elsewhere.pck_threshold,
        elsewhere.trg_all_kps,
        elsewhere.trg_all_id >= 0,
    )
    assert given.chance.dtype == torch.float32 and dagger.counts.device.type == "meta"
    group = same_group(elsewhere.kps_id, elsewhere.trg_all_id, elsewhere.category, {"": [[0, 1]]})
    heatmap = torch.rand(*elsewhere.kps_mask.shape, 4, 4, device="meta")
    chosen = best_candidate(heatmap, elsewhere.trg_all_kps, elsewhere.trg_all_id, group, (64, 64))
    assert {group.device.type, chosen.device.type} == {"meta"}
    assert GivenCandidates().to("cpu").chance.dtype == torch.float64
