import math
import time
import tracemalloc
from collections import defaultdict
from itertools import islice, zip_longest

import numpy as np
import pytest

from distill.core.errors import ConfigError, DataError
from distill.data import pair_sampling
from distill.data.pair_sampling import count_pairs, sample_pairs


def exhaustive(categories, n_pairs, seed, per_source):
    """The draw by which the shipped labels' pairs were chosen: all pairs are listed, then the first ones taken."""
    members = defaultdict(list)
    for number, category in enumerate(categories):
        members[category].append(number)
    rng = np.random.default_rng([seed, len(categories)])

    def bundles(group):
        sources = rng.permutation(group).tolist()
        targets = {source: [t for t in rng.permutation(group).tolist() if t != source] for source in sources}
        starts = range(0, len(group) - 1, per_source)
        return [[(s, t) for t in targets[s][start : start + per_source]] for start in starts for s in sources]

    queues = [bundles(members[category]) for category in sorted(members)]
    turns = (bundle for turn in zip_longest(*queues, fillvalue=[]) for bundle in turn)
    return list(islice((pair for bundle in turns for pair in bundle), n_pairs))


@pytest.mark.parametrize("per_source", [1, 3, 4])
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("categories", ["abcdefgh" * 25, "a" * 13 + "b" * 2 + "c", "ab" * 6 + "c" * 9])
def test_pairs_of_earlier_seeds_stay_what_they_were(categories, seed, per_source):
    possible = count_pairs(categories)
    for n_pairs in sorted({1, 5, min(800, possible), possible // 2, possible}):
        assert sample_pairs(categories, n_pairs, seed, per_source) == exhaustive(categories, n_pairs, seed, per_source)


@pytest.mark.parametrize("permuted", [0, 10**8])
def test_all_pairs_can_be_drawn_and_none_comes_twice(permuted, monkeypatch):
    monkeypatch.setattr(pair_sampling, "MAX_PERMUTED", permuted)
    categories = "aaaaaaabbbbc"
    pairs = sample_pairs(categories, count_pairs(categories), 0, per_source=3)
    assert len(set(pairs)) == len(pairs) == 7 * 6 + 4 * 3
    assert all(s != t and categories[s] == categories[t] for s, t in pairs)
    assert pairs == sample_pairs(categories, len(pairs), 0, 3) != sample_pairs(categories, len(pairs), 1, 3)


def test_a_draw_of_large_categories_is_uniform_and_keeps_the_targets_of_a_source_together(monkeypatch):
    monkeypatch.setattr(pair_sampling, "MAX_PERMUTED", 0)
    counts = np.zeros((5, 5))
    for seed in range(2000):
        for source, target in sample_pairs("aaaaa", 4, seed, per_source=2):
            counts[source, target] += 1
    expected = 2000 * 4 / 20
    assert (counts.diagonal() == 0).all() and (abs(counts[counts > 0] - expected) < 5 * expected**0.5).all()
    pairs = sample_pairs("a" * 50, 40, 0, per_source=4)
    assert [len({s for s, _ in pairs[k : k + 4]}) for k in range(0, 40, 4)] == [1] * 10
    assert len({s for s, _ in pairs}) == 10


@pytest.mark.parametrize("n_images", [4_000, 100_000])
def test_pairs_of_many_images_are_drawn_in_little_time_and_memory(n_images):
    """Listing all pairs of 4,000 images took 16.6 s and 2.8 GB."""
    categories = ["cat"] * n_images
    tracemalloc.start()
    start = time.process_time()
    pairs = sample_pairs(categories, 100, 0, per_source=4)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(pairs)) == 100 and peak < 50 * 2**20 and seconds < 8


@pytest.mark.parametrize("count", [0, -1, 1.5, math.nan, True])
def test_a_source_has_one_target_at_least(count):
    """With none the draw never ended."""
    with pytest.raises(ConfigError, match="data.pairs_per_image as a whole number of at least 1 but got"):
        sample_pairs(["a", "a"], 1, seed=0, per_source=count)


def test_more_pairs_than_there_are_is_an_error():
    with pytest.raises(DataError, match="between 1 and 8"):
        sample_pairs(["a", "b", "a", "b", "b", "c"], 9, seed=0)
    with pytest.raises(DataError, match="two images of one category"):
        sample_pairs(["a", "b"], 1, seed=0)
