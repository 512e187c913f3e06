"""Running a teacher over a data set, source image by source image."""

import time
from collections.abc import Iterator

from distill.data.pairs import collate_pairs
from distill.evaluation import Benchmark, to_device
from distill.matchers.cached import Cached
from distill.progress import bar
from distill.types import PairBatch


def label(
    teacher: Cached, benchmark: Benchmark, device: str = "cpu", progress: bool = True, every: slice | None = None
) -> int:
    """Makes and stores the labels of ``benchmark`` that are not there yet; safe to kill and to start again.

    Pairs are taken in the order of their source images, because what a teacher learns of a source point serves all
    targets.

    Args:
        teacher: with its store.
        benchmark: the pairs.
        device: where the images are sent.
        progress: whether to draw a bar with points per second and the time left.
        every: which of the pairs, so ordered; all without it.

    Returns:
        How many points were labelled.
    """
    made, start = 0, time.perf_counter()
    order = by_source(benchmark)[every or slice(None)]
    with bar("pairs") as shown:
        task = shown.add_task(f"label {benchmark.name} {benchmark.split}", total=len(order), note="", visible=progress)
        for number in order:
            pairs = to_device(benchmark[number], device)
            before = len(teacher.store)
            if pairs.kps_mask.any():
                teacher.match_pairs(pairs)
            made += len(teacher.store) - before
            rate = made / (time.perf_counter() - start)
            shown.update(task, advance=1, note=f", {rate:.1f} points/s")
    teacher.flush()
    return made


def by_source(benchmark: Benchmark) -> list[int]:
    """Returns the numbers of all pairs, those with the same source image together."""
    pairs = getattr(benchmark, "pairs", None)
    sources = [source for source, _ in pairs] if pairs is not None else [p.src_hash[0] for p in _every(benchmark)]
    return sorted(range(len(sources)), key=lambda number: (sources[number], number))


def _every(benchmark: Benchmark) -> Iterator[PairBatch]:
    for number in range(len(benchmark)):
        yield collate_pairs([benchmark[number]])
