"""Which pairs an epoch has."""

from collections import Counter

import pytest
from torch.utils.data import DistributedSampler

from distill.data.samplers import LabelledThenAll


def epoch(number: int, first_epoch: int, n_pairs: int = 11, n_labelled: int = 4, world_size: int = 1, seed: int = 0):
    """The pairs of an epoch, those of each process."""
    shares = []
    for rank in range(world_size):
        sampler = LabelledThenAll(range(n_pairs), n_labelled, first_epoch, world_size, rank, seed)  # type: ignore[arg-type]
        sampler.set_epoch(number)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    return shares


@pytest.mark.parametrize("number", [0, 1, 5])
def test_at_first_labelled_pairs_come_in_torchs_own_order(number):
    theirs = DistributedSampler(range(4), 1, 0, seed=3)  # type: ignore[arg-type]
    theirs.set_epoch(number)
    assert epoch(number, 6, seed=3) == [list(theirs)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_then_each_pair_has_its_turn_before_one_comes_again(world_size):
    shares = [epoch(number, 5, world_size=world_size) for number in range(5, 16)]  # 44 turns: four passes over 11 pairs
    turns = [share[place] for processes in shares for place in range(4 // world_size) for share in processes]
    passes = [turns[start : start + 11] for start in range(0, 44, 11)]
    assert [sorted(one) for one in passes] == [list(range(11))] * 4
    assert len({tuple(one) for one in passes}) == 4 and passes[0] != sorted(passes[0])


def test_an_epoch_with_more_labelled_pairs_than_there_are_in_all_passes_several_times():
    (share,) = epoch(2, 1, n_pairs=3, n_labelled=8)
    assert len(share) == 8 and set(Counter(share).values()) <= {2, 3}


def test_the_seed_and_the_epoch_decide_the_order():
    assert epoch(1, 1) == epoch(1, 1) != epoch(1, 1, seed=1) and epoch(1, 1) != epoch(2, 1)
