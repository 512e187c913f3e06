"""Drawing ordered pairs of images of one category, without listing all that there are."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ConfigError, DataError
from distill.core.numbers import is_whole

MAX_PAIRS = 100_000
"""The most pairs that are drawn where no number is given; 100,000 pairs of names take about 20 MiB."""

MAX_PERMUTED = 10**8
"""The most numbers that are permuted for one draw, which takes about a second; see :func:`sample_pairs`."""

Array = NDArray[np.int64]


def count_pairs(categories: Sequence[str]) -> int:
    """Returns how many ordered pairs of different images of one category there are."""
    return sum(count * (count - 1) for count in Counter(categories).values())


def check_pairs_per_image(count: int, key: str = "data.pairs_per_image") -> None:
    """Raises a :class:`ConfigError` unless ``count``, how many targets a source image gets, is a whole number of at least 1."""
    if not is_whole(count, 1):
        raise ConfigError(f"Expected {key} as a whole number of at least 1 but got {count!r}; 4 is usual.")


def sample_pairs(categories: Sequence[str], n_pairs: int, seed: int, per_source: int = 1) -> list[tuple[int, int]]:
    """Draws ordered pairs of different images of one category, none twice, the categories in turn.

    Only as many targets of each source are kept as the draw uses. Up to ``MAX_PERMUTED`` numbers the targets of each
    source are a permutation of its category, so that the pairs of earlier versions are drawn again; beyond,
    only the targets that are used are drawn. Time and memory then grow with ``n_pairs`` and the number of images.

    Args:
        categories: of each image.
        n_pairs: how many pairs.
        seed: decides the draw.
        per_source: how many targets a source image gets at a time, as far as there are as many. A teacher that keeps
            what it learned of a source point profits.

    Returns:
        (source, target) numbers of images.

    Raises:
        ConfigError: for a ``per_source`` below 1.
        DataError: when there are fewer such pairs than asked for.
    """
    check_pairs_per_image(per_source)
    members: dict[str, list[int]] = defaultdict(list)
    for number, category in enumerate(categories):
        members[category].append(number)
    possible = count_pairs(categories)
    if not possible:
        raise DataError(
            f"Expected two images of one category but got {len(categories)} images in {len(members)} categories; "
            "check data.root and data.split."
        )
    if n_pairs < 1 or n_pairs > possible:
        raise DataError(
            f"Expected data.n_pairs between 1 and {possible}, the same-category pairs of {len(categories)} images, "
            f"but got {n_pairs}."
        )
    groups = [np.array(members[category]) for category in sorted(members)]
    bundles = _bundles_used([len(group) for group in groups], n_pairs, per_source)
    rng = np.random.default_rng([seed, len(categories)])
    permute = sum(len(group) ** 2 for group in groups) <= MAX_PERMUTED
    queues = [_bundles(g, n, per_source, rng, permute) for g, n in zip(groups, bundles, strict=True)]
    turns = (next(queue, ()) for _ in range(max(bundles)) for queue in queues)
    return list(islice((pair for bundle in turns for pair in bundle), n_pairs))


def _bundles_used(sizes: Sequence[int], n_pairs: int, per_source: int) -> list[int]:
    """Returns how many bundles, up to ``per_source`` targets of one source, each category adds to ``n_pairs`` pairs."""
    used, pairs, turn = [0] * len(sizes), 0, 0
    while pairs < n_pairs:
        for number, size in enumerate(sizes):
            start = turn // size * per_source  # of the bundle among the targets of its source
            if pairs < n_pairs and start < size - 1:
                used[number] += 1
                pairs += min(per_source, size - 1 - start)
        turn += 1
    return used


def _bundles(
    group: Array, n_bundles: int, per_source: int, rng: np.random.Generator, permute: bool
) -> Iterator[list[tuple[int, int]]]:
    """Returns the first ``n_bundles`` of a category, source by source in random order, then again with further targets.

    All that is random is drawn before this returns, so that the categories are drawn one after the other.
    """
    sources = rng.permutation(group)
    rounds = -(-n_bundles // len(group))
    n_targets = min(rounds * per_source, len(group) - 1)
    if permute:
        orders = (rng.permutation(group) for _ in sources)
        targets = [order[order != s][:n_targets].copy() for s, order in zip(sources, orders, strict=True)]
    else:
        targets = [_other(group, s, n_targets, rng) for s in sources[:n_bundles]]

    def bundles() -> Iterator[list[tuple[int, int]]]:
        """Yields for each source its pairs with the next ``per_source`` targets."""
        for number in range(n_bundles):
            turn, source = divmod(number, len(sources))
            chosen = targets[source][turn * per_source : (turn + 1) * per_source]
            yield [(int(sources[source]), target) for target in chosen.tolist()]

    return bundles()


def _other(group: Array, source: int, count: int, rng: np.random.Generator) -> Array:
    """Returns ``count`` different members of a sorted ``group`` besides ``source``."""
    places = rng.choice(len(group) - 1, count, replace=False)
    return group[places + (places >= np.searchsorted(group, source))]
