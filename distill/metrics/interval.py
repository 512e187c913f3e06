"""95 % intervals of a mean over pairs."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

NORMAL = 1.96  # standard deviations on both sides of the mean that hold 95 % of a normal distribution
SAME = 1e-9  # of values that differ by rounding only
DRAWN_TOGETHER = 2**22  # values of the bootstrap that are in memory at once, whatever the number of pairs


class Interval(NamedTuple):
    """A mean and its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def over_pairs(values: ArrayLike, seed: int = 0, draws: int = 2000) -> Interval:
    """Returns the mean over pairs, and its interval from a bootstrap that takes pairs for independent.

    It is the interval that papers state. Pairs that share images are not independent, and it is too narrow for them.

    Args:
        values: (P,) one value for each pair.
        seed: of the draws.
        draws: how many.
    """
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, mean, mean)
    random, together = np.random.default_rng(seed), max(1, DRAWN_TOGETHER // len(values))
    found = bootstrap((values,), np.mean, n_resamples=draws, batch=together, method="percentile", rng=random)
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high))


def over_images(
    values: ArrayLike,
    images: Sequence[tuple[Hashable, Hashable]],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Returns the mean over pairs, and its interval when pairs that share an image may be alike.

    The variance is Aronow, Samii and Assenova's ("Cluster-robust variance estimation for dyadic data", Political Analysis
    2015): the sum of the products of the deviations of all pairs of pairs with an image in common. Where that
    comes out below the variance of independent pairs, as it can by chance, the latter is taken. The interval is symmetric, and cut
    at ``bounds``: few pairs would lead it past them.

    Where all pairs have the same value there is no variance to go by, and it is Wilson's ("Probable inference", JASA 1927): of n
    independent pairs that all have a value, at least n / (n + 1.96^2) of all pairs have it, and the others may have any between
    the bounds. At most half as many pairs as there are images share none, so that is n.

    Args:
        values: (P,) one value for each pair.
        images: for each pair what its two images are known by.
        bounds: the least and the largest value that there can be.
    """
    values = np.asarray(values, float)
    mean, (least, largest) = float(values.mean()), bounds
    names = {name: number for number, name in enumerate(dict.fromkeys(name for pair in images for name in pair))}
    if np.ptp(values) <= SAME:
        independent = max(1, len(names) // 2)
        alike = independent / (independent + NORMAL**2)
        return Interval(mean, alike * mean + (1 - alike) * least, alike * mean + (1 - alike) * largest)
    deviations = values - values.mean()
    ends = np.sort([[names[a], names[b]] for a, b in images], axis=1)
    of_images = np.bincount(ends[:, 0], deviations, len(names)) + np.bincount(ends[:, 1], deviations, len(names))
    _, which = np.unique(ends, axis=0, return_inverse=True)
    both = np.bincount(which.ravel(), deviations)  # these share two images, and were counted with each
    shared = np.square(of_images).sum() - np.square(both).sum()
    half = NORMAL * np.sqrt(max(shared, np.square(deviations).sum())) / len(values)
    return Interval(mean, max(least, float(mean - half)), min(largest, float(mean + half)))
