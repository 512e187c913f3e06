import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from distill.errors import ConfigError
from distill.losses import CoordinateHuber, Example, HeatmapKL, weighted_mean
from distill.types import Matches


def matches(points, confidence, heatmap) -> Matches:
    return Matches(torch.tensor(points), torch.tensor(confidence), heatmap)


@pytest.fixture
def example(make_pairs):
    def build(prediction: Matches, label: Matches, mask: torch.Tensor) -> Example:
        return Example(make_pairs(mask.shape[1], size=32)._replace(kps_mask=mask), label, prediction)

    return build


def random_case(side: int = 8):
    random = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False]])
    label = matches([[[8.0, 8.0]] * 3], [[1.0, 0.25, 9.0]], torch.rand(1, 3, 4, 4, generator=random))
    prediction = matches(
        [[[8.0, 11.0], [20.0, 8.0], [0.0, 0.0]]], [[0.0] * 3], torch.randn(1, 3, side, side, generator=random)
    )
    return prediction, label, mask


def test_heatmap_kl_agrees_with_scipy(example):
    prediction, label, mask = random_case()
    expected = []
    for n in range(2):
        scores = np.exp(prediction.heatmap[0, n].double().numpy())
        cells = (scores / scores.sum()).reshape(4, 2, 4, 2).sum((1, 3))
        target = label.heatmap[0, n].double().numpy() ** 3
        expected.append(rel_entr(target / target.sum(), cells).sum())
    value = HeatmapKL(sharpness=3)(example(prediction, label, mask))
    assert float(value) == pytest.approx((expected[0] + 0.25 * expected[1]) / 1.25, rel=1e-4)


def test_heatmap_kl_is_zero_when_the_student_says_what_the_teacher_says(example):
    _, label, mask = random_case()
    prediction = label._replace(heatmap=2 * label.heatmap.log())
    assert float(HeatmapKL(sharpness=2)(example(prediction, label, mask))) == pytest.approx(0, abs=1e-5)


def test_coordinate_huber_by_hand(example):
    prediction, label, mask = random_case()
    # Distances 3 and 12 of 32 px; delta 0.25: the first is square, the second straight.
    near, far = (3 / 32) ** 2 / 2 / 0.25, 12 / 32 - 0.125
    value = CoordinateHuber(delta=0.25)(example(prediction, label, mask))
    assert float(value) == pytest.approx((near + 0.25 * far) / 1.25, rel=1e-4)


def test_padding_has_no_gradient_even_where_it_holds_nonsense(example):
    prediction, label, mask = random_case()
    heatmap, points = prediction.heatmap.requires_grad_(), prediction.trg_kps.requires_grad_()
    prediction = Matches(points, prediction.confidence, heatmap)
    (HeatmapKL()(example(prediction, label, mask)) + CoordinateHuber()(example(prediction, label, mask))).backward()
    assert heatmap.grad is not None and points.grad is not None
    assert not heatmap.grad[0, 2].any() and not points.grad[0, 2].any()
    assert heatmap.grad[0, 0].any() and points.grad[0, 0].any()


def test_labels_without_confidence_teach_nothing():
    value = weighted_mean(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert float(value) == 0 and math.isfinite(value)


@pytest.mark.parametrize(
    ("build", "name"), [(lambda: HeatmapKL(0), "sharpness"), (lambda: CoordinateHuber(-1), "delta")]
)
def test_settings_that_cannot_work_are_named(build, name):
    with pytest.raises(ConfigError, match=name):
        build()
