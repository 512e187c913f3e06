import math

import numpy as np
import pytest
from torch import tensor
from torchmetrics.functional.classification import binary_calibration_error

from distill.core.errors import DataError
from distill.metrics.calibration import calibration
from distill.metrics.confidence import auroc


def by_loops(sure, right, bins: int) -> float:
    """The expected calibration error, with the upper border of each bin in it; a reference in plain Python."""
    number = [min(max(math.ceil(s * bins) - 1, 0), bins - 1) for s in sure]
    gap = 0.0
    for n in range(bins):
        rows = [r for r in range(len(sure)) if number[r] == n]
        gap += abs(sum(sure[r] for r in rows) - sum(bool(right[r]) for r in rows))
    return gap / len(sure)


def test_the_calibration_error_agrees_with_loops_and_with_torchmetrics():
    random = np.random.default_rng(0)
    sure = random.random(500)
    right = random.random(500) < sure**2
    found = calibration(sure, right, bins=8)
    expected = binary_calibration_error(tensor(sure), tensor(right).int(), n_bins=8, norm="l1")
    assert found["ece"] == pytest.approx(float(expected), abs=1e-5)
    assert found["ece"] == pytest.approx(by_loops(sure, right, 8), abs=1e-12)


def test_points_of_full_confidence_share_the_last_bin():
    found = calibration(np.array([0.91, 1.0, 1.0]), np.array([True, False, True]))
    assert [row["count"] for row in found["bins"]] == [3] and found["ece"] == pytest.approx(abs(2.91 - 2) / 3)


def test_four_points_by_hand():
    found = calibration(np.array([0.1, 0.2, 0.9, 1.0]), np.array([False, True, True, True]), bins=2)
    assert found["bins"] == [
        {"count": 2, "confidence": pytest.approx(0.15), "accuracy": 0.5},
        {"count": 2, "confidence": pytest.approx(0.95), "accuracy": 1.0},
    ]
    assert found["ece"] == pytest.approx((0.35 + 0.05) / 2)
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.01 + 0) / 4)


def test_ties_count_half_and_one_kind_alone_has_no_area():
    assert auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert math.isnan(calibration(np.array([0.5, 0.6]), np.array([True, True]))["auroc"])


@pytest.mark.parametrize(
    ("sure", "right", "message"),
    [([0.5], [True, False], "1 and 2"), ([], [], "0 and 0"), ([1.5], [True], r"\[0, 1\] but got 1.5")],
)
def test_what_cannot_be_compared_is_refused(sure, right, message):
    with pytest.raises(DataError, match=message):
        calibration(np.array(sure), np.array(right))
