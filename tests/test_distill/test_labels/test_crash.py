"""Labelling that is killed, starved of space, kept from writing, or done by eight at once."""

import copy
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from distill.core.errors import LabelError
from distill.core.types import Matches, PairBatch
from distill.data.pairs import collate_pairs
from distill.labels.audit import audit
from distill.labels.cached import Cached
from distill.labels.generate import label
from distill.labels.store import LabelStore
from distill.matchers.oracle import Oracle
from distill.system.progress import LineProgress

KILLS = 50
FORK = multiprocessing.get_context("fork")  # so that a worker need not import torch again


class Slow(Oracle):
    """An oracle that takes a millisecond for a pair, so that kills hit it at work."""

    def match_pairs(self, pairs: PairBatch) -> Matches:
        time.sleep(1e-3)
        return super().match_pairs(pairs)


@pytest.fixture
def many(few, make_pairs):
    """60 pairs of two points, each with a source image of its own."""
    return type(few)([make_pairs(2, size=16, seed=seed) for seed in range(60)])


def work(folder: Path, pairs, flush_seconds: float = 0.0) -> int:
    return label(Cached(folder, Slow(4), flush_seconds), pairs, progress=False)


def started(task: Callable[[], object]) -> multiprocessing.Process:
    def run() -> None:
        torch.set_num_threads(1)
        os._exit(int(task() is False))

    process = FORK.Process(target=run)
    process.start()
    return process


def raises(message: str, task: Callable[[], object]) -> bool:
    try:
        task()
    except LabelError as error:
        return message in str(error)
    return False


def in_one_go(folder: Path, pairs) -> list[str]:
    """The files of a store that was made without disturbance; they are named after their content."""
    work(folder, pairs, 60)
    LabelStore(folder).compact()
    return sorted(path.name for path in folder.glob("[!.]*.safetensors"))


def test_after_fifty_kills_nothing_is_wrong_and_the_store_equals_one_made_in_one_go(tmp_path, many):
    folder, chance, killed, attempts = tmp_path / "killed", random.Random(0), 0, 0
    while killed < KILLS:
        attempts += 1
        assert attempts < 10 * KILLS, "the workers finish before they can be killed"
        process = started(partial(work, folder, many))
        time.sleep(chance.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if any(folder.glob("[!.]*.safetensors")):  # one killed early has made the folder and stored nothing
            found = audit(folder)
            assert found.problems == [] and not any("twice" in note for note in found.notes)
            if found.labels > 100:  # nearly done: begin anew, so that all kills hit a worker
                folder = tmp_path / f"killed-{attempts}"
    work(folder, many)
    assert audit(folder).problems == [] and len(LabelStore(folder)) == 120
    LabelStore(folder).compact()
    assert sorted(path.name for path in folder.glob("[!.]*.safetensors")) == in_one_go(tmp_path / "whole", many)


def test_a_disk_that_fills_up_is_named_and_harms_nothing(tmp_path, many):
    def task() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # bytes; a file of labels is larger
        return raises("make room or set labels.dir", lambda: work(tmp_path / "full", many))

    work(tmp_path / "full", type(many)(many.items[:20]))
    before = sorted(tmp_path.glob("full/*"))
    process = started(task)
    process.join(60)
    assert process.exitcode == 0 and sorted(tmp_path.glob("full/*")) == before
    assert audit(tmp_path / "full").problems == []
    assert work(tmp_path / "full", many) == 80 and audit(tmp_path / "full").labels == 120


def test_a_read_only_folder_is_named_before_the_teacher_is_asked(many):
    class Never(Slow):
        def match_pairs(self, pairs: PairBatch) -> Matches:
            raise AssertionError("asked")

    with tempfile.TemporaryDirectory() as name:  # in reach of an unprivileged user, as pytest's folders are not
        folder = Path(name) / "labels"
        work(folder, type(many)(many.items[:3]))
        for path in (Path(name), folder):
            path.chmod(0o555)

        def task() -> bool:
            if os.geteuid() == 0:
                os.setuid(65534)  # nothing is read-only to root
            complete = label(Cached(folder, Never(4)), type(many)(many.items[:3]), progress=False) == 0
            return complete and raises(
                "Permission denied", lambda: label(Cached(folder, Never(4)), many, progress=False)
            )

        process = started(task)
        process.join(60)
        Path(name).chmod(0o755), folder.chmod(0o755)
        assert process.exitcode == 0 and audit(folder).labels == 6


def test_eight_processes_in_one_folder_lose_double_and_tear_nothing(tmp_path, many):
    made = FORK.SimpleQueue()
    workers = [started(lambda: made.put(work(tmp_path / "shared", many, 0.02))) for _ in range(8)]
    counts = [made.get() for _ in workers]
    for worker in workers:
        worker.join(60)
    found = audit(tmp_path / "shared")
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert sum(counts) == found.labels == 120 and found.problems == [] and not any("twice" in n for n in found.notes)
    assert sum(count > 0 for count in counts) > 1, "one process did it all"
    LabelStore(tmp_path / "shared").compact()
    files = sorted(path.name for path in (tmp_path / "shared").glob("[!.]*.safetensors"))
    assert files == in_one_go(tmp_path / "whole", many)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_end_stores_what_it_finished(tmp_path, many, number):
    class Told(Slow):
        answered = 0

        def match_pairs(self, pairs: PairBatch) -> Matches:
            if self.answered >= 24:
                (tmp_path / "answered").write_text(str(self.answered))
                os.kill(os.getpid(), number)
                time.sleep(60)
            self.answered += len(pairs.category)
            return super().match_pairs(pairs)

    def task() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
        try:
            label(Cached(tmp_path / "labels", Told(4)), many, progress=False)
        except KeyboardInterrupt:
            os._exit(130)

    process = started(task)
    process.join(50)
    assert process.exitcode == 128 + number
    assert audit(tmp_path / "labels").labels == 2 * int((tmp_path / "answered").read_text()) >= 48
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Timed(Oracle):
    """An oracle that takes ``per_pair`` seconds for a pair, and writes down how many it was given together."""

    def __init__(self, per_pair: float, first: float = 0.0) -> None:
        super().__init__(4)
        self.per_pair, self.first, self.given = per_pair, first, []

    def match_pairs(self, pairs: PairBatch) -> Matches:
        time.sleep(self.per_pair * len(pairs.category) + (0 if self.given else self.first))
        self.given.append(len(pairs.category))
        return super().match_pairs(pairs)


def test_a_slow_teacher_is_given_no_more_pairs_than_it_answers_in_time(tmp_path, many):
    teacher, some = Timed(0.02), type(many)(many.items[:20])
    label(Cached(tmp_path, teacher), some, progress=False, batch_seconds=0.07)
    assert sum(teacher.given) == 20 and max(teacher.given) in (2, 3)
    teacher = Timed(0.02)
    label(Cached(tmp_path / "slower", teacher), type(many)(many.items[:5]), progress=False, batch_seconds=0.01)
    assert teacher.given == [1] * 5


def test_the_batch_grows_from_one_pair_and_forgets_how_long_loading_took(tmp_path, many):
    teacher = Timed(0.0, first=0.1)
    label(Cached(tmp_path, teacher), many, progress=False, batch_seconds=0.08)
    assert teacher.given[:4] == [1] * 4 and teacher.given[-2:-1] == [8], "the first one loaded the weights"
    teacher = Timed(0.0)
    label(Cached(tmp_path / "fast", teacher), many, progress=False)
    assert teacher.given[:5] == [1, 2, 4, 8, 8]


def test_the_bar_counts_a_pair_when_it_has_its_labels(tmp_path, many, monkeypatch):
    shown, teacher = LineProgress(), Cached(tmp_path, Slow(4))
    counted = []

    def update(task, advance, note):
        counted.append(advance)
        assert 2 * sum(counted) == len(teacher.store)

    monkeypatch.setattr(shown, "update", update)
    monkeypatch.setattr("distill.labels.generate.bar", lambda unit: shown)
    assert label(teacher, many) == 120 and sum(counted) == 60
    counted.clear()
    monkeypatch.setattr(shown, "update", lambda task, advance, note: counted.append(advance))
    assert label(teacher, many) == 0 and sum(counted) == 60, "those that have their labels already"


def test_what_another_process_is_at_work_on_is_waited_for(tmp_path, many):
    few = type(many)(many.items[:20])
    ready = FORK.Event()

    def slow() -> None:
        cached = Cached(tmp_path, Slow(4), 60)
        cached.match_pairs = lambda pairs: (ready.set(), time.sleep(0.02), Cached.match_pairs(cached, pairs))[2]
        label(cached, few, progress=False)

    other = started(slow)
    assert ready.wait(60)
    made = work(tmp_path, few)
    assert len(LabelStore(tmp_path)) == 40 and made < 40  # all are there, and some were the other's
    other.join(60)


def test_shares_of_a_job_array_make_the_whole_without_doubles(tmp_path, many):
    teacher = Slow(4)
    counts = [label(Cached(tmp_path, teacher), many, progress=False, every=slice(i, None, 4)) for i in range(4)]
    assert sum(counts) == 120 and max(counts) - min(counts) <= 2 and audit(tmp_path).labels == 120


class Reading(Dataset):
    """Pairs with their labels, read in whatever process loads them."""

    def __init__(self, store: LabelStore, pairs) -> None:
        self.store, self.pairs = store, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[PairBatch, Matches]:
        labels, found = self.store.lookup(self.pairs[index])
        assert found.all()
        return self.pairs[index], labels


@pytest.mark.parametrize("copied", [False, True])
def test_several_loading_processes_read_one_store_at_once(tmp_path, many, copied):
    some = type(many)(many.items[:24])
    work(tmp_path, some)
    store = LabelStore(tmp_path)
    store.lookup(some[0])  # so that a file is open already
    store = copy.deepcopy(store) if copied else store  # as it would come to a process that is no fork
    loader = DataLoader(Reading(store, some), batch_size=None, num_workers=3)
    read = list(loader)
    assert len(read) == 24
    for pairs, labels in read:
        torch.testing.assert_close(labels.trg_kps, collate_pairs([pairs]).trg_kps)
