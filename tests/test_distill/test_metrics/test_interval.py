import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest

from distill.metrics.interval import over_images, over_pairs


def test_the_interval_over_pairs_covers_the_mean_and_has_its_width():
    values = np.random.default_rng(0).normal(3, 5, 400)
    mean, low, high = over_pairs(values)
    assert mean == pytest.approx(values.mean()) and low < 3 < high
    assert high - low == pytest.approx(2 * 1.96 * 5 / 20, rel=0.1)


def test_the_interval_over_pairs_is_that_of_numpy_within_monte_carlo_error():
    values = np.random.default_rng(4).gamma(2, 10, 300)
    rows = np.random.default_rng(0).integers(300, size=(2000, 300))
    expected = np.percentile(values[rows].mean(1), [2.5, 97.5])
    _, low, high = over_pairs(values)
    assert (low, high) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))
    assert over_pairs(values) == over_pairs(values) != over_pairs(values, seed=1)


def test_the_interval_over_many_pairs_takes_little_memory():
    """All draws of 30,000 pairs at once would take a GiB."""
    values = np.random.default_rng(0).uniform(0, 100, 30_000)
    tracemalloc.start()
    mean, low, high = over_pairs(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20 and high - low == pytest.approx(2 * 1.96 * values.std() / 30_000**0.5, rel=0.1)


def test_one_pair_or_equal_pairs_have_an_interval_of_no_width():
    assert tuple(over_pairs([7.0])) == (7, 7, 7) and tuple(over_pairs([7.0, 7.0, 7.0])) == (7, 7, 7)


def test_the_variance_over_images_sums_over_all_pairs_of_pairs_with_an_image_in_common():
    random = np.random.default_rng(1)
    images = [tuple(random.choice(9, 2, replace=False)) for _ in range(40)]
    images += [images[0], images[0][::-1]]  # twice the same two, also the other way about
    effects = random.normal(size=9)
    values = np.array([effects[a] + effects[b] for a, b in images]) + random.normal(size=42)
    off, variance = values - values.mean(), 0.0
    for p, first in enumerate(images):
        for q, second in enumerate(images):
            if set(first) & set(second):
                variance += off[p] * off[q]
    mean, low, high = over_images(values, images)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance) / 42)


def test_the_interval_of_a_percentage_stays_between_0_and_100():
    values, images = [100, 100, 100, 40], [("a", "b"), ("b", "c"), ("c", "a"), ("d", "e")]
    mean, low, high = over_images(values, images)
    assert high > 100, "few pairs, which share images"
    assert over_images(values, images, (0, 100)) == (mean, low, 100.0)
    assert over_images([100 - value for value in values], images, (0, 100)) == pytest.approx(
        (100 - mean, 0.0, 100 - low)
    )
    difference = over_images([-100, -100, -100, -40], images, (-100, 100))
    assert difference == pytest.approx((-mean, -100.0, -low))


@pytest.mark.parametrize(("n", "values"), [(1, (100, 0, 50)), (3, (100, 0, 25)), (500, (100, 0))])
def test_equal_pairs_leave_what_wilsons_interval_does(n, values):
    """Of a share of 1 in n trials; pairs that do not have the value may have any."""
    images = [(f"a{k}", f"b{k}") for k in range(n)]
    share = binomtest(n, n).proportion_ci(method="wilson").low
    for value in values:
        mean, low, high = over_images([value] * n, images, (0, 100))
        assert mean == value and (low, high) == pytest.approx(
            (share * value, share * value + 100 * (1 - share)), rel=1e-3
        )
    assert over_images([100.0] * 3, images[:1] * 3, (0, 100)).low == pytest.approx(20.7, abs=0.1), "one pair, thrice"


def test_equal_pairs_that_share_images_are_no_more_than_half_the_images():
    ring = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a"), ("a", "c"), ("b", "d")]
    two = [("a", "b"), ("c", "d")]
    assert over_images([100.0] * 6, ring, (0, 100)) == over_images([100.0] * 2, two, (0, 100))
    third = 1 / 3  # rounding is no spread
    differences = [100 * (2 * third - third), 100 * (third - 0.0)]
    assert over_images(differences, two, (-100, 100)).low < 0


def test_pairs_that_share_nothing_are_independent():
    values = np.random.default_rng(2).random(300)
    _, low, high = over_images(values, [(f"a{n}", f"b{n}") for n in range(300)])
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(300))


def test_the_interval_over_images_covers_the_truth_where_that_over_pairs_does_not():
    random, covered = np.random.default_rng(3), np.zeros(2)
    images = [(a, (a + step) % 60) for a in range(60) for step in (1, 2, 3, 4)]
    for _ in range(200):
        effects = random.normal(size=60)
        values = [effects[a] + effects[b] + random.normal() for a, b in images]
        covered += [low < 0 < high for _, low, high in (over_pairs(values, draws=200), over_images(values, images))]
    assert covered[0] < 130 and covered[1] > 175
