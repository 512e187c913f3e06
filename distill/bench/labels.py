"""Benchmark of a large label store: writing, opening and random reads, on one core."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from distill.core.types import Original, PairBatch
from distill.data.pairs import Query
from distill.labels.index import FILE
from distill.labels.records import Columns, Image
from distill.labels.shard import write_shard
from distill.labels.store import LabelStore
from distill.system.memory import PeakMemory, process_peak_mib

POINTS = 10  # of a pair
PER_FILE = 8000  # labels
TARGETS = 5  # of a source image
SIDE = 16  # cells of a heatmap
BATCH = 16  # pairs
PX = 512  # side of the images


def label_rates(records: int, reads: int = 20_000) -> list[dict]:
    """Measures a store of about ``records`` synthetic labels, which is made in a temporary folder and removed.

    Args:
        records: labels in the store.
        reads: labels to read at random.

    Returns:
        Rows of ``bench.json``: writing, opening with and without the index, reading by batches and pair by pair; and of all
        labels, finding out that they are there and reading them in random order, as an epoch of a training does.
    """
    files = max(1, round(records / PER_FILE))
    with tempfile.TemporaryDirectory(prefix="distill-labels-") as name:
        folder = Path(name)
        writing = _seconds(
            lambda: [write_shard(folder, _columns(file), {"method": "synthetic"}) for file in range(files)]
        )
        rows = [_row("write", files * PER_FILE, writing)]
        opening = _seconds(lambda: LabelStore(folder))
        LabelStore(folder).write_index()
        size = (folder / FILE).stat().st_size if (folder / FILE).exists() else 0
        indexed = min(_seconds(lambda: LabelStore(folder)) for _ in range(3))
        rows += [
            _row("open without index", 1, opening),
            _row("open", 1, indexed) | {"index_mib": round(size / 2**20, 2)},
        ]
        store, rng = LabelStore(folder), np.random.default_rng(0)
        for variant, pairs in (("read 16 pairs at a time", BATCH), ("read pair by pair", 1)):
            batches = list(_random_batches(files, reads, pairs, rng))
            taken = _seconds(lambda batches=batches: [_read(store, batch) for batch in batches])  # type: ignore[func-returns-value, misc]
            labels = len(batches) * pairs * POINTS
            rows.append(_row(variant, labels, taken) | {"pairs_per_second": round(labels / POINTS / taken, 1)})
        with PeakMemory() as memory:
            taken = _seconds(lambda: _find_all(LabelStore(folder), files))
        rows.append(_of_all("find all pairs", files, taken, memory.mib))
        order = rng.permutation(files * PER_FILE // POINTS)
        with PeakMemory() as memory:
            taken = _seconds(lambda: _read_all(LabelStore(folder), order))
        rows.append(_of_all("read all pairs, 16 at a time", files, taken, memory.mib))
    return rows


def _columns(file: int) -> Columns:
    """Returns the labels of one file: pairs in succession, :data:`TARGETS` of each source image."""
    pairs = np.arange(PER_FILE // POINTS)
    rng = np.random.default_rng(file)
    images = [
        Image(f"image-{file}-{n}", f"image {file} {n}", (PX, PX)) for n in range(len(pairs) // TARGETS + TARGETS + 1)
    ]
    heat = rng.random((PER_FILE, SIDE, SIDE), dtype=np.float32).astype(np.float16)
    src = np.repeat(pairs // TARGETS, POINTS).astype(np.int32)
    trg = np.repeat(pairs // TARGETS + pairs % TARGETS + 1, POINTS).astype(np.int32)
    trg_point = rng.random((PER_FILE, 2), dtype=np.float32)
    confidence = rng.random(PER_FILE, dtype=np.float32)
    return Columns(images, src, trg, _points(len(pairs)).reshape(-1, 2), trg_point, confidence, heat)


def _points(pairs: int) -> np.ndarray:
    """Returns (pairs, POINTS, 2) points x / W, y / H, the same in every file."""
    return np.random.default_rng(0).random((pairs, POINTS, 2), dtype=np.float32)


def _random_batches(files: int, reads: int, pairs: int, rng: np.random.Generator) -> Iterator[PairBatch]:
    points = _points(PER_FILE // POINTS)
    for _ in range(max(1, reads // (pairs * POINTS))):
        yield _batch(points, rng.integers(files, size=pairs), rng.integers(len(points), size=pairs))


def _batch(points: np.ndarray, file: np.ndarray, pair: np.ndarray) -> PairBatch:
    """Returns the batch of the pairs (B,) in the files (B,); ``points`` (P, POINTS, 2) are those of a file's pairs."""
    pairs = len(pair)
    names, targets = zip(*(_names(f, p) for f, p in zip(file.tolist(), pair.tolist(), strict=True)), strict=True)
    known = {
        "src_img": torch.zeros(pairs, 3, 1, 1),
        "trg_img": torch.zeros(pairs, 3, 1, 1),  # of one pixel, so that points are in px, too
        "src_content": torch.tensor([0.0, 0, 1, 1]).expand(pairs, 4),
        "trg_content": torch.tensor([0.0, 0, 1, 1]).expand(pairs, 4),
        "src_kps": torch.from_numpy(points[pair]),
        "kps_mask": torch.ones(pairs, POINTS, dtype=torch.bool),
        "src_id": list(names),
        "trg_id": list(targets),
        "src_original": [Original(name, (PX, PX)) for name in names],
        "trg_original": [Original(name, (PX, PX)) for name in targets],
    }
    unused = {name: torch.zeros(pairs, 1) for name in PairBatch._fields}  # what a lookup does not look at
    return PairBatch(**{**unused, **known})  # type: ignore[arg-type]


def _names(file: int, pair: int) -> tuple[str, str]:
    """Returns the names of the source and the target of a pair."""
    return f"image-{file}-{pair // TARGETS}", f"image-{file}-{pair // TARGETS + pair % TARGETS + 1}"


def _find_all(store: LabelStore, files: int) -> None:
    """Looks every pair up in the index, as a resumed labelling does."""
    points = _points(PER_FILE // POINTS).astype(np.float64)
    for file in range(files):
        for pair in range(len(points)):
            if not store.known(Query(*_names(file, pair), points[pair])).all():
                raise RuntimeError("a label that was written was not found")  # a bug of ours


def _read_all(store: LabelStore, order: np.ndarray) -> None:
    """Reads the labels of all pairs in an order, :data:`BATCH` pairs at a time."""
    points = _points(PER_FILE // POINTS)
    for first in range(0, len(order), BATCH):
        file, pair = np.divmod(order[first : first + BATCH], len(points))
        _read(store, _batch(points, file, pair))


def _read(store: LabelStore, batch: PairBatch) -> None:
    if not store.lookup(batch)[1].all():
        raise RuntimeError("a label that was written was not found")  # a bug of ours: the figures would mean nothing


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _of_all(variant: str, files: int, seconds: float, mib: float) -> dict:
    row = _row(variant, files * PER_FILE, seconds) | {"peak_memory_mib": mib, "seconds": round(seconds, 1)}
    return row | {"pairs_per_second": round(files * PER_FILE / POINTS / seconds, 1)}


def _row(variant: str, count: int, seconds: float) -> dict:
    return {
        "what": "labels",
        "variant": variant,
        "batch": 1,
        "threads": 1,
        "per_second": round(count / seconds, 1),
        "latency_ms": round(1000 * seconds / count, 4),
        "peak_memory_mib": process_peak_mib(),
    }
