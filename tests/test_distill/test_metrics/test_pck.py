import numpy as np
import pytest
import torch

from distill.metrics.agreement import agreement
from distill.metrics.geometry_aware import GeometryAwarePCK
from distill.metrics.pck import PCK, image_pck, pck_correct, with_slack
from distill.metrics.pck_dagger import PCKDagger, pck_dagger_outcomes


def scenario(seed: int = 0, pairs: int = 6, points: int = 5):
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 100, (pairs, points, 2))
    predicted = truth + random.normal(0, 12, truth.shape)
    mask = random.random((pairs, points)) < 0.7
    mask[0] = False
    base = random.uniform(40, 120, pairs)
    return predicted, truth, mask, base


def tensors(predicted, truth, mask, base):
    return torch.tensor(predicted), torch.tensor(truth), torch.tensor(mask), torch.tensor(base)


def test_a_point_exactly_at_the_threshold_is_right():
    predicted, truth = torch.tensor([[[13.0, 14.0], [13.0, 14.001]]]), torch.tensor([[[10.0, 10.0], [10.0, 10.0]]])
    assert pck_correct(predicted, truth, torch.tensor([50.0]), [0.10])[0, :, 0].tolist() == [True, False]


def test_a_point_that_is_not_a_number_is_wrong():
    nan = torch.full((1, 1, 2), float("nan"))
    assert not pck_correct(nan, torch.zeros(1, 1, 2), torch.ones(1), [0.1]).any()


def test_per_image_and_per_point_differ_as_computed_by_hand():
    # Pair one: 1 of 1 right. Pair two: 1 of 3. Per image (1 + 1/3) / 2, per point 2 / 4.
    truth = torch.zeros(2, 3, 2)
    predicted = torch.tensor([[[1.0, 0], [99, 0], [99, 0]], [[1, 0], [99, 0], [99, 0]]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    metric = PCK([0.1])
    metric.update(predicted, truth, mask, torch.tensor([10.0, 10.0]))
    result = metric.compute()
    assert result["image"]["0.10"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert result["point"]["0.10"] == pytest.approx(50.0)


def test_the_metric_agrees_with_loops_however_the_pairs_are_split_into_batches():
    predicted, truth, mask, base = scenario()
    shares, right, count = [], 0, 0
    for p, t, m, b in zip(predicted, truth, mask, base, strict=True):
        hits = [np.hypot(*(q - r)) <= 0.15 * b for q, r, keep in zip(p, t, m, strict=True) if keep]
        if hits:
            shares.append(np.mean(hits))
            right, count = right + sum(hits), count + len(hits)
    metric = PCK([0.15])
    arguments = tensors(predicted, truth, mask, base)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(*(a[rows] for a in arguments))
    assert metric.compute()["image"]["0.15"] == pytest.approx(100 * np.mean(shares))
    assert metric.compute()["point"]["0.15"] == pytest.approx(100 * right / count)


def test_two_processes_add_up_to_one():
    arguments = tensors(*scenario())
    whole, first, second = PCK(), PCK(), PCK()
    whole.update(*arguments)
    first.update(*(a[:2] for a in arguments))
    second.update(*(a[2:] for a in arguments))
    for name in ("image_sum", "point_sum", "n_pairs", "n_points"):
        torch.testing.assert_close(getattr(first, name) + getattr(second, name), getattr(whole, name))


def test_nothing_gives_nan_rather_than_a_number():
    assert np.isnan(PCK([0.1]).compute()["image"]["0.10"])
    assert torch.isnan(image_pck(torch.zeros(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))).all()


def test_the_four_outcomes_of_pck_dagger_by_hand():
    truth = torch.tensor([[[0.0, 0.0], [100.0, 0.0], [50.0, 80.0], [0.0, 200.0]]])
    predicted = torch.tensor([[[3.0, 0.0], [5.0, 0.0], [50.0, 95.0], [60.0, 40.0]]])
    outcomes = pck_dagger_outcomes(predicted, truth, torch.ones(1, 4, dtype=torch.bool), torch.tensor([100.0]), 0.10)
    assert [name for n in range(4) for name, rows in outcomes._asdict().items() if rows[0, n]] == [
        "right",
        "swap",
        "jitter",
        "miss",
    ]


def test_pck_dagger_sorts_every_point_once_and_never_exceeds_pck():
    arguments = tensors(*scenario(3, pairs=40))
    dagger, plain = PCKDagger(0.1), PCK([0.1])
    dagger.update(*arguments)
    plain.update(*arguments)
    rates = dagger.compute()
    assert sum(rates.values()) == pytest.approx(100)
    assert rates["right"] <= plain.compute()["point"]["0.10"]


def test_agreement_by_hand():
    first, second = (
        [np.array([[0.0, 0], [10, 0]]), np.array([[0.0, 0]])],
        [np.array([[3.0, 4], [10, 0]]), np.array([[0.0, 9]])],
    )
    result = agreement(first, second, [100, 60], [0.05, 0.10])
    assert result == {
        "median_px": 5.0,
        "median_relative": 0.05,
        "within_0.05": pytest.approx(200 / 3),
        "within_0.10": pytest.approx(200 / 3),
    }


def test_rounding_makes_no_point_at_the_tolerance_wrong_in_any_figure():
    """0.29 * 100 is 28.999999999999996."""
    apart, place, base = np.array([[29.0, 0]]), np.array([[0.0, 0]]), [100.0]
    assert agreement([apart], [place], base, [0.29])["within_0.29"] == 100
    given = (*(torch.from_numpy(points)[None] for points in (apart, place)), torch.tensor(base))
    assert pck_correct(*given, [0.29]).all()
    right = pck_dagger_outcomes(given[0], given[1], torch.tensor([[True]]), given[2], alpha=0.29).right
    assert right.all() and with_slack(0.29 * 100) < 29 + 1e-6


def test_a_keypoint_that_only_the_target_shows_can_be_confused_too():
    # The answer is 4 px from its keypoint, but 1 px from one that the source does not show: right by PCK, a swap by
    # PCK-dagger.
    arguments = (
        torch.tensor([[[4.0, 0.0]]]),
        torch.zeros(1, 1, 2),
        torch.ones(1, 1, dtype=torch.bool),
        torch.tensor([50.0]),
    )
    others, exist = torch.tensor([[[5.0, 0.0], [4.0, 0.0]]]), torch.tensor([[True, False]])
    assert pck_correct(*arguments[:2], arguments[3], [0.1]).all()
    assert pck_dagger_outcomes(*arguments, 0.1).right.all()
    assert pck_dagger_outcomes(*arguments, 0.1, others, exist).swap.all()


def test_a_point_is_geometry_aware_when_another_part_of_its_group_is_in_the_target():
    from distill.metrics.geometry_aware import geometry_aware

    # Parts 0 and 1 are symmetric, 2 has no counterpart. The first target shows both, the second only one of them.
    ids, mask = torch.tensor([[0, 2], [0, 2]]), torch.ones(2, 2, dtype=torch.bool)
    everything = torch.tensor([[0, 1, 2], [0, 2, -1]])
    assert geometry_aware(ids, mask, everything, ["a", "a"], {"": [(0, 1)]}).tolist() == [[True, False], [False, False]]
    assert not geometry_aware(ids, mask, everything, ["a", "a"], {"a": [], "": [(0, 1)]}).any()


def test_a_point_without_a_truth_counts_for_nothing():
    truth = torch.tensor([[[0.0, 0.0], [float("nan"), 0.0]]])
    metric = PCK([0.1])
    metric.update(torch.zeros(1, 2, 2), truth, torch.ones(1, 2, dtype=torch.bool), torch.tensor([50.0]))
    assert int(metric.n_points) == 1 and metric.compute()["point"]["0.10"] == 100


def test_a_point_without_a_truth_is_no_swap():
    nan = float("nan")
    truth = torch.tensor([[[0.0, 0.0], [nan, 0.0], [nan, nan]]])
    mask, base = torch.ones(1, 3, dtype=torch.bool), torch.tensor([50.0])
    metric = PCKDagger(0.1)
    metric.update(torch.zeros(1, 3, 2), truth, mask, base)
    assert int(metric.n_points) == 1
    assert metric.compute() == {"right": 100.0, "jitter": 0.0, "swap": 0.0, "miss": 0.0}
    outcomes = pck_dagger_outcomes(torch.zeros(1, 3, 2), truth, mask, base, 0.1)
    assert torch.stack(outcomes).sum((1, 2)).tolist() == [1, 0, 0, 0]


def test_a_further_keypoint_without_a_place_confuses_nothing():
    arguments = torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), torch.tensor([50.0])
    others = torch.full((1, 2, 2), float("nan"))
    assert pck_dagger_outcomes(*arguments, 0.1, others, torch.ones(1, 2, dtype=torch.bool)).right.all()


def test_points_without_a_truth_are_left_out_of_the_geometry_aware_subset():
    truth = torch.tensor([[[0.0, 0.0], [float("nan"), 0.0]]])
    metric = GeometryAwarePCK({"": [(0, 1)]}, [0.1])
    ids = torch.tensor([[0, 1]])
    metric.update(
        torch.zeros(1, 2, 2), truth, torch.ones(1, 2, dtype=torch.bool), torch.tensor([50.0]), ids, ids, ["a"]
    )
    assert int(metric.n_points) == 1 and metric.compute()["point"]["0.10"] == 100
