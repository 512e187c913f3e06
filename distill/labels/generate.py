"""Running a teacher over a data set, source image by source image."""

import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager

from distill.core.protocols import Benchmark
from distill.core.types import PairBatch
from distill.data.pairs import Query, collate_pairs, to_device, with_views
from distill.labels import LabelStore
from distill.labels.cached import Cached
from distill.labels.locks import Locks
from distill.system.progress import bar, track

BATCH_SECONDS = 10.0
"""What is lost when labelling is interrupted."""


def label(
    teacher: Cached,
    benchmark: Benchmark,
    device: str = "cpu",
    progress: bool = True,
    every: slice | None = None,
    batch_size: int = 8,
    batch_seconds: float = BATCH_SECONDS,
    then: str = "",
) -> int:
    """Makes and stores the labels of ``benchmark`` that are not there yet; safe to interrupt and to start again.

    Pairs are taken in the order of their source images, because a prompt that was optimised for a source point serves
    all targets. Any number of processes may label into one folder at once: a source image that another process has locked
    is put off, and all labels are there when this returns. Finished labels are written when Ctrl-C, SIGTERM or an error
    ends this, without the pairs that the teacher is at work on, about ``batch_seconds`` of work; a process that is killed
    also loses those of the last ``teacher.flush_seconds``.

    Args:
        teacher: with its store.
        benchmark: the pairs.
        device: where the images are sent.
        progress: whether to draw a bar with points per second and the time left.
        every: which of the source images; all without it.
        batch_size: pairs that the teacher is given together, at most.
        batch_seconds: that the teacher works on such a batch, by its speed so far; a single pair may take longer.
        then: what the caller does next and takes time, such as " + training"; shown behind the time that is left.

    Returns:
        How many points were labelled by this process.
    """
    groups = by_source_image(benchmark)[every or slice(None)]
    with bar("pairs") as shown:
        name, total = f"label {benchmark.name} {benchmark.split}", sum(map(len, groups))
        task = shown.add_task(name, total=total, then=then, visible=progress)
        work = _Work(teacher, benchmark, device, _Pace(batch_size, batch_seconds))
        with _exit_on_sigterm(), closing(work.through(groups)) as finished:
            read = 0
            for done in finished:
                shown.update(task, advance=done, note=f", {work.rate:.1f} points/s" if work.made else ", read")
                if work.made and read:  # what is read takes no time: it must not count for the time that is left
                    shown.reset(task, total=total, completed=read + done)
                    read = 0
                elif not work.made:
                    read += done
    if work.made:
        teacher.store.write_index()
    return work.made


class _Pace:
    """How many pairs the teacher is given together, so that it answers them in time.

    The first pair is asked alone, then at most twice as many as the time before; the slowest of the last ``MEASURED``
    batches says how long a point takes.

    Args:
        most: pairs together, at most.
        seconds: that a batch may take; a single pair may take longer.
    """

    MEASURED = 4

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._pairs, self._per_point = 1, deque[float](maxlen=self.MEASURED)

    def is_enough(self, pairs: int, points: int) -> bool:
        """Returns whether a batch of ``pairs`` with ``points`` missing labels has no room for another pair like these."""
        with_another = max(self._per_point, default=0.0) * points * (pairs + 1) / pairs
        return pairs >= min(self.most, self._pairs) or with_another > self.seconds

    def measure(self, pairs: int, points: int, seconds: float) -> None:
        """Takes how long a batch took."""
        self._pairs = 2 * pairs if pairs >= self._pairs else self._pairs
        self._per_point.append(seconds / points)


class _Work:
    """One process's share of the labelling.

    Locks on source images are kept until their labels are written, so that no other process makes them too.
    """

    def __init__(self, teacher: Cached, benchmark: Benchmark, device: str, pace: _Pace) -> None:
        self.teacher, self.benchmark, self.device, self.pace = teacher, benchmark, device, pace
        self.waiting: list[int] = []  # pairs that lack labels, whose source images are locked
        self.missing = 0  # labels that these lack
        self.made, self.start = 0, time.perf_counter()
        self.locks: Locks | None = None  # made when something is missing: a complete store may be read-only
        self.written = time.monotonic()

    @property
    def rate(self) -> float:
        """Points labelled per second."""
        return self.made / max(time.perf_counter() - self.start, 1e-9)

    def through(self, groups: list[list[int]]) -> Generator[int]:
        """Labels groups of pairs with one source image each; yields how many pairs have been finished since the last time."""
        put_off = []
        try:
            for group in groups:
                taken = yield from self._collect(group)
                put_off += [group[taken:]] if taken < len(group) else []
                if time.monotonic() - self.written > self.teacher.flush_seconds:
                    yield self._write()
            yield self._write()
            for group in put_off:
                yield from self._collect(group, wait=True)
                yield self._write()  # no lock is held while another is waited for: no two processes wait for each other
        finally:
            try:
                self._flush()
            finally:
                if self.locks is not None:
                    self.locks.close()

    def _collect(self, group: list[int], wait: bool = False) -> Generator[int, None, int]:
        """Labels the pairs of a group, or puts them with those that wait to be, until one is locked by another process.

        Returns:
            How many there were.
        """
        locked, finished = False, 0
        for taken, number in enumerate(group):
            query = query_of(self.benchmark, number)
            missing = self._count_missing(query)
            if missing and not locked:
                self.locks = self.locks or Locks(self.teacher.store.folder)
                if not self.locks.take(query.src, wait):
                    yield finished
                    return taken
                locked = True
                self.teacher.store.refresh()  # the process that had the lock before may have made these labels
                missing = self._count_missing(query)
            if not missing:
                finished += 1
                continue
            self.waiting.append(number)
            self.missing += missing
            if self.pace.is_enough(len(self.waiting), self.missing):
                yield finished + self._label()
                finished = 0
        yield finished
        return len(group)

    def _count_missing(self, query: Query) -> int:
        return int((~self.teacher.store.known(query)).sum())

    def _label(self) -> int:
        """Has the teacher label the pairs that wait; returns how many they were."""
        if not self.waiting:
            return 0
        before, pairs = len(self.teacher.store), [self._originals(number) for number in self.waiting]
        missing, self.waiting, self.missing = self.missing, [], 0
        start = time.perf_counter()
        for same in _of_one_size(pairs):
            self.teacher.match_pairs(to_device(collate_pairs(same), self.device))
        self.pace.measure(len(pairs), missing, time.perf_counter() - start)
        self.made += len(self.teacher.store) - before
        return len(pairs)

    def _originals(self, number: int) -> PairBatch:
        """Returns a pair as the teacher is made for, size and way of resizing, if it and the data set say so, else as it is."""
        teacher, views = self.teacher.teacher, getattr(self.benchmark, "views", None)
        size, resize = getattr(teacher, "size", None), getattr(teacher, "resize", None) or "squash"
        pair = self.benchmark[number]
        if size is None or views is None or (resize == "squash" and _is_at(pair, size)):
            return pair
        return with_views(pair, *(views(number, size) if resize == "squash" else views(number, size, resize)))

    def _write(self) -> int:
        """Labels what waits and writes all labels; returns how many pairs have been finished."""
        finished = self._label()
        self._flush()
        return finished

    def _flush(self) -> None:
        self.teacher.flush()
        self.written = time.monotonic()
        if self.locks is not None:
            self.locks.release()


def _is_at(pair: PairBatch, size: int) -> bool:
    """Returns whether the images of a pair are squares of ``size`` px a side without padding, and need not be read again."""
    images = ((pair.src_img, pair.src_content), (pair.trg_img, pair.trg_content))
    return all(
        image.shape[-2:] == (size, size) and content.tolist() == [[0, 0, size, size]] for image, content in images
    )


def _of_one_size(pairs: Sequence[PairBatch]) -> list[list[PairBatch]]:
    """Shares pairs out so that the images of each share have one size."""
    shares = defaultdict(list)
    for pair in pairs:
        shares[pair.src_img.shape, pair.trg_img.shape].append(pair)
    return list(shares.values())


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exception (exit code 143) within, unless the program handles the signal in its own way."""
    main = threading.current_thread() is threading.main_thread()  # Python allows signal handlers there only
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def coverage(store: LabelStore, benchmark: Benchmark) -> tuple[int, int]:
    """Returns how many points of ``benchmark`` have a label, and how many there are."""
    known = points = 0
    for number in track(range(len(benchmark)), f"read {benchmark.name} {benchmark.split}"):
        found = store.known(query_of(benchmark, number))
        points += len(found)
        known += int(found.sum())
    return known, points


def query_of(benchmark: Benchmark, number: int) -> Query:
    """Returns which labels pair ``number`` has, without decoding its images where the data set can tell."""
    query = getattr(benchmark, "query", None)
    return query(number) if query is not None else Query.of(benchmark[number])


def by_source_image(benchmark: Benchmark) -> list[list[int]]:
    """Returns the numbers of all pairs, those with the same source image in one list."""
    named = getattr(benchmark, "image_pairs", None)  # pairs may be known by other names than their images'
    pairs = named() if named is not None else getattr(benchmark, "pairs", None)
    numbers = range(len(benchmark))
    sources = [source for source, _ in pairs] if pairs is not None else [query_of(benchmark, n).src for n in numbers]
    groups = defaultdict(list)
    for number, source in enumerate(sources):
        groups[source].append(number)
    return [groups[source] for source in sorted(groups)]
