"""Labels of one teacher, found by the content of the images and the point."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.errors import LabelError
from distill.core.geometry import image_size
from distill.core.types import Matches, PairBatch
from distill.labels.folder import LabelFolder, mismatch
from distill.labels.records import GRID, Columns, Image, Record, image_number, joined, on_grid, point_keys

AROUND = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)])
"""Cells of the grid in which a point may have been stored: its own, then those that a rounding error leads to."""

Part = tuple[NDArray[np.int64], Columns]


class LabelStore:
    """Labels of one teacher, read and appended to. Any number of processes may read and append to one folder.

    Args:
        folder: of the files; made when the first label is written.
        fingerprint: of the teacher whose labels are wanted; None accepts whatever the folder holds.
        fallbacks: further folders to read from, such as the labels that come with the project. One that another teacher
            made is ignored.

    Raises:
        LabelError: when a file is damaged, or made by something else than ``fingerprint`` says; it names the fields.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Mapping[str, str] | None = None, fallbacks: Sequence[str | Path] = ()
    ) -> None:
        self.folder = Path(folder)
        self._own = LabelFolder(self.folder, fingerprint)
        others = [LabelFolder(Path(fallback)) for fallback in fallbacks]
        wanted = self._own.fingerprint
        self._fallbacks = [o for o in others if wanted is None or not mismatch(o.fingerprint or {}, wanted)]
        self._unwritten: dict[int, Record] = {}
        self._count()

    @property
    def fingerprint(self) -> dict[str, str] | None:
        """Of the teacher; None while it is not known."""
        return self._own.fingerprint

    def __len__(self) -> int:
        """How many labels there are, those included that are not written yet."""
        return self._written + len(self._unwritten)

    @property
    def files(self) -> list[Path]:
        """Of the folder's labels, in no particular order."""
        return list(self._own.index.files)

    def lookup(self, pairs: PairBatch) -> tuple[Matches, Tensor]:
        """Returns the labels of a batch, and (B, N) bool which of its points have one.

        Points count as the same within a hundredth of a pixel. What has no label is zero.

        Raises:
            LabelError: when a label is not as it was written.
        """
        places = np.argwhere(pairs.kps_mask.cpu().numpy())
        points = pairs.src_kps.detach().cpu().numpy()[places[:, 0], places[:, 1]]
        keys = _keys_around(pairs, places[:, 0], points)
        left = np.arange(len(places))
        parts: list[Part] = []
        for folder in (self._own, *self._fallbacks):
            at = folder.find(keys[:, left])
            hits = left[at >= 0]
            parts += [(hits[members], columns) for members, columns in folder.read(at[at >= 0])]
            left = left[at < 0]
        parts += self._from_memory(keys, left)
        for members, columns in parts:
            self._check_identity(pairs, places[members], points[members], columns)
        return _assembled(pairs, places, parts)

    def add(self, pairs: PairBatch, labels: Matches, mask: Tensor) -> None:
        """Keeps the labels of the points where ``mask`` (B, N) is true, in memory until :meth:`flush`."""
        places = np.argwhere(mask.cpu().numpy())
        points = pairs.src_kps.detach().cpu().numpy()[places[:, 0], places[:, 1]].astype(np.float32)
        trg_kps, confidence, heatmap = (field.detach().float().cpu().numpy() for field in labels)
        keys = _keys_around(pairs, places[:, 0], points)[0].tolist()
        src_size, trg_size = image_size(pairs.src_img), image_size(pairs.trg_img)
        for key, (b, n), point in zip(keys, places.tolist(), points, strict=True):
            self._unwritten[key] = Record(
                Image(pairs.src_hash[b], pairs.src_id[b], src_size),
                Image(pairs.trg_hash[b], pairs.trg_id[b], trg_size),
                point,
                trg_kps[b, n].copy(),
                float(confidence[b, n]),
                heatmap[b, n].astype(np.float16),
            )

    def flush(self) -> None:
        """Writes what was added to a file of its own, one for each size of heatmap.

        Raises:
            LabelError: when the folder cannot be written to; the labels stay in memory.
        """
        if not self._unwritten:
            return
        records = sorted(self._unwritten.values(), key=_heatmap_size)
        self._own.write([joined([Columns.of(list(group))]) for _, group in groupby(records, _heatmap_size)])
        self._unwritten.clear()
        self._count()

    def refresh(self) -> None:
        """Takes notice of what other processes wrote to the folder."""
        self._own.refresh()
        self._count()

    def write_index(self) -> None:
        """Writes the index of the folder, see :meth:`LabelFolder.write_index`."""
        self._own.write_index()
        self._count()

    def compact(self) -> None:
        """Writes all labels to few files, see :meth:`LabelFolder.compact`."""
        self.flush()
        self._own.compact()
        self._count()

    def _count(self) -> None:
        self._written = sum(folder.index.distinct() for folder in (self._own, *self._fallbacks))

    def _from_memory(self, keys: NDArray[np.uint64], members: NDArray[np.int64]) -> list[Part]:
        if not self._unwritten:
            return []
        found = (
            (member, next((self._unwritten[key] for key in keys[:, member].tolist() if key in self._unwritten), None))
            for member in members.tolist()
        )
        return [(np.array([member]), Columns.of([record])) for member, record in found if record is not None]

    def _check_identity(self, pairs: PairBatch, places: NDArray, points: NDArray, columns: Columns) -> None:
        """Refuses records that the index says are of other images or points than they are."""
        hashes = [image.hash for image in columns.images]
        near = np.abs(columns.point - points).max(1) < 2 / GRID
        for row, (b, close) in enumerate(zip(places[:, 0].tolist(), near.tolist(), strict=True)):
            named = hashes[columns.src[row]], hashes[columns.trg[row]]
            if not close or named != (pairs.src_hash[b], pairs.trg_hash[b]):
                raise LabelError(
                    f"Expected an index that fits its files in {self.folder} but it names another label for "
                    f"{pairs.src_id[b]} -> {pairs.trg_id[b]}; make it again with: python -m distill label repair "
                    f"labels.dir={self.folder}"
                )


def _assembled(pairs: PairBatch, places: NDArray, parts: Sequence[Part]) -> tuple[Matches, Tensor]:
    """Spreads records over the points (P, 2) row and column that they are for."""
    shape = tuple(pairs.kps_mask.shape)
    sides = {part.heatmap.shape[1:] for _, part in parts}
    if len(sides) > 1:
        raise LabelError(f"Expected heatmaps of one size in a batch but got {sorted(sides)}; set data.size back.")
    found = np.zeros(shape, bool)
    points, confidence = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    heatmap = np.zeros((*shape, *(sides.pop() if sides else (1, 1))), np.float32)
    for members, columns in parts:
        at = places[members, 0], places[members, 1]
        found[at] = True
        points[at], confidence[at], heatmap[at] = columns.trg_kps, columns.confidence, columns.heatmap
    like = pairs.src_kps
    labels = Matches(*(torch.from_numpy(values).to(like) for values in (points, confidence, heatmap)))
    return labels, torch.from_numpy(found).to(like.device)


def _keys_around(pairs: PairBatch, rows: NDArray, points: NDArray) -> NDArray[np.uint64]:
    """Returns (9, P) keys under which points (P, 2) of the pairs ``rows`` (P,) may have been stored."""
    src, trg = (np.array([image_number(h) for h in hashes], np.uint64) for hashes in (pairs.src_hash, pairs.trg_hash))
    return point_keys(src[rows][None], trg[rows][None], on_grid(points)[None] + AROUND[:, None])


def _heatmap_size(record: Record) -> tuple[int, ...]:
    return record.heatmap.shape
