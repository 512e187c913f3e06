"""Labels of one teacher, found by the original images and the point."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.errors import ConfigError, LabelError
from distill.core.geometry import image_size, relative_points
from distill.core.heatmaps import recover
from distill.core.types import Matches, PairBatch
from distill.data.pairs import Query
from distill.labels.folder import LabelFolder, mismatch
from distill.labels.records import GRID, Columns, Image, Record, image_number, joined, on_grid, point_keys

AROUND = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)])
"""Cells of the grid in which a point may have been stored: its own, then those that a rounding error leads to."""

Part = tuple[NDArray[np.int64], Columns]


class LabelStore:
    """Labels of one teacher, read and appended to. Any number of processes may read and append to one folder.

    Labels are kept relative to the original images: one store serves images of any size, squashed and letterboxed.

    Args:
        folder: of the files; made when the first label is written.
        fingerprint: of the teacher whose labels are wanted; None accepts whatever the folder holds.
        fallbacks: further folders to read from, such as the labels that come with the project. One that another teacher
            made is ignored.

    Raises:
        ConfigError: when there is no folder at one of ``fallbacks``.
        LabelError: when a file is damaged, or made by something else than ``fingerprint`` says; it names the fields.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Mapping[str, str] | None = None, fallbacks: Sequence[str | Path] = ()
    ) -> None:
        self.folder = Path(folder)
        self._main = LabelFolder(self.folder, fingerprint)
        for fallback in fallbacks:
            if not Path(fallback).is_dir():
                raise ConfigError(
                    f"Expected a folder of labels in labels.fallbacks but there is none at {fallback}; correct it, or leave it out."
                )
        others = [LabelFolder(Path(fallback)) for fallback in fallbacks]
        wanted = self._main.fingerprint
        self._fallbacks = [o for o in others if wanted is None or not mismatch(o.fingerprint or {}, wanted)]
        self._unwritten: dict[int, Record] = {}
        self._count()

    @property
    def fingerprint(self) -> dict[str, str] | None:
        """The teacher's fingerprint; None while it is not known."""
        return self._main.fingerprint

    def __len__(self) -> int:
        """How many labels there are in the folder, the fallbacks and memory; one that several folders have counts once."""
        return self._written + len(self._unwritten)

    @property
    def folders(self) -> list[Path]:
        """The folders that labels are read from: the store's own, then the fallbacks of the same teacher."""
        return [folder.path for folder in (self._main, *self._fallbacks)]

    @property
    def files(self) -> list[Path]:
        """The files of the folder's labels, in no particular order."""
        return list(self._main.index.files)

    def known(self, query: Query) -> NDArray[np.bool_]:
        """Returns (N,) which points of a pair have a label; a look into the indices that reads no label."""
        src, trg = (np.array([image_number(name)], np.uint64) for name in (query.src, query.trg))
        folders = (self._main, *self._fallbacks)
        first = point_keys(src, trg, on_grid(query.points))[None]
        found = np.any([folder.find(first) >= 0 for folder in folders], axis=0)
        if found.all():
            return found
        keys = _keys_around(src, trg, query.points)  # rounding may have led to the cells beside
        for folder in folders:
            found |= folder.find(keys) >= 0
        if self._unwritten:
            found |= np.array([any(key in self._unwritten for key in column) for column in keys.T.tolist()], bool)
        return found

    def lookup(self, pairs: PairBatch) -> tuple[Matches, Tensor]:
        """Returns the labels of a batch in px of its images, and (B, N) bool which of its points have one.

        Points count as the same within a hundred-thousandth of the image's sides. What has no label is zero. A heatmap
        covers the whole of ``trg_img``, and is zero in the padding.

        Raises:
            LabelError: when a label is not as it was written.
        """
        places = np.argwhere(pairs.kps_mask.cpu().numpy())
        points, keys = _located(pairs, places)
        left = np.arange(len(places))
        parts: list[Part] = []
        for folder in (self._main, *self._fallbacks):
            at = folder.find(keys[:, left])
            hits = left[at >= 0]
            for members, columns in folder.read(at[at >= 0]):
                of = hits[members]
                _check_identity(folder.path, pairs, places[of], points[of], columns)
                parts.append((of, columns))
            left = left[at < 0]
        for members, columns in self._from_memory(keys, left):
            _check_identity(self.folder, pairs, places[members], points[members], columns)
            parts.append((members, columns))
        return _assembled(pairs, places, parts)

    def add(self, pairs: PairBatch, labels: Matches, mask: Tensor) -> None:
        """Keeps the labels of the points where ``mask`` (B, N) is true, in memory until :meth:`flush`."""
        places = np.argwhere(mask.cpu().numpy())
        points, keys = _located(pairs, places)
        chosen = labels.heatmap.detach().float().cpu()[places[:, 0], places[:, 1]]
        content = pairs.trg_content.detach().float().cpu()[places[:, 0]]
        heatmaps = _over(chosen, content, image_size(pairs.trg_img), inwards=True).numpy().astype(np.float16)
        answers = labels.trg_kps.detach().cpu()[places[:, 0], places[:, 1]].double()
        found = relative_points(answers, content).float().numpy()
        confidence = labels.confidence.detach().float().cpu().numpy()[places[:, 0], places[:, 1]]
        for row, (key, b) in enumerate(zip(keys[0].tolist(), places[:, 0].tolist(), strict=True)):
            src, trg = pairs.src_original[b], pairs.trg_original[b]
            self._unwritten[key] = Record(
                Image(src.hash, pairs.src_id[b], src.size),
                Image(trg.hash, pairs.trg_id[b], trg.size),
                points[row].astype(np.float32),
                found[row],
                float(confidence[row]),
                heatmaps[row],
            )

    def flush(self) -> None:
        """Writes what was added to a file of its own, one for each size of heatmap.

        Raises:
            LabelError: when the folder cannot be written to; the labels stay in memory.
        """
        if not self._unwritten:
            return
        records = sorted(self._unwritten.values(), key=_heatmap_size)
        self._main.write([joined([Columns.of(list(group))]) for _, group in groupby(records, _heatmap_size)])
        self._unwritten.clear()
        self._count()

    def refresh(self) -> None:
        """Reads which labels other processes wrote to the folder."""
        self._main.refresh()
        self._count()

    def write_index(self) -> None:
        """Writes the index of the folder, see :meth:`LabelFolder.write_index`."""
        self._main.write_index()
        self._count()

    def compact(self) -> None:
        """Writes all labels to few files, see :meth:`LabelFolder.compact`."""
        self.flush()
        self._main.compact()
        self._count()

    def _count(self) -> None:
        self._written = 0
        before: list[LabelFolder] = []
        for folder in (self._main, *self._fallbacks):
            self._written += folder.index.distinct()
            if before and len(folder.index):
                keys = np.unique(folder.index.key)
                self._written -= int(np.any([other.index.find(keys) >= 0 for other in before], axis=0).sum())
            before.append(folder)

    def _from_memory(self, keys: NDArray[np.uint64], members: NDArray[np.int64]) -> list[Part]:
        if not self._unwritten:
            return []
        found = (
            (member, next((self._unwritten[key] for key in keys[:, member].tolist() if key in self._unwritten), None))
            for member in members.tolist()
        )
        return [(np.array([member]), Columns.of([record])) for member, record in found if record is not None]


def _check_identity(folder: Path, pairs: PairBatch, places: NDArray, points: NDArray, columns: Columns) -> None:
    """Refuses records of a folder whose index says that they are of other images or points than they are."""
    hashes = [image.hash for image in columns.images]
    near = np.abs(columns.src_point - points).max(1) < 2 / GRID
    for row, (b, close) in enumerate(zip(places[:, 0].tolist(), near.tolist(), strict=True)):
        named = hashes[columns.src[row]], hashes[columns.trg[row]]
        if not close or named != (pairs.src_original[b].hash, pairs.trg_original[b].hash):
            raise LabelError(
                f"Expected an index that fits its files in {folder} but it names another label for "
                f"{pairs.src_id[b]} -> {pairs.trg_id[b]}; make it again with: python -m distill label repair "
                f"labels.dir={folder}"
            )


def _assembled(pairs: PairBatch, places: NDArray, parts: Sequence[Part]) -> tuple[Matches, Tensor]:
    """Spreads records over the points (P, 2) row and column that they are for, in px of the target images."""
    shape = tuple(pairs.kps_mask.shape)
    sides = {part.heatmap.shape[1:] for _, part in parts}
    if len(sides) > 1:
        raise LabelError(
            f"Expected heatmaps of one size in a batch but got {sorted(sides)}; keep such labels in folders of their own."
        )
    found = np.zeros(shape, bool)
    points, confidence = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    heatmap = np.zeros((*shape, *(sides.pop() if sides else (1, 1))), np.float32)
    content, size = pairs.trg_content.detach().float().cpu(), image_size(pairs.trg_img)
    for members, columns in parts:
        at = places[members, 0], places[members, 1]
        boxes = content[at[0]]
        found[at] = True
        points[at] = columns.trg_point * (boxes[:, 2:] - boxes[:, :2]).numpy() + boxes[:, :2].numpy()
        confidence[at] = columns.confidence
        heatmap[at] = _over(torch.from_numpy(columns.heatmap).float(), boxes, size, inwards=False).numpy()
    like = pairs.src_kps
    labels = Matches(*(torch.from_numpy(values).to(like) for values in (points, confidence, heatmap)))
    return labels, torch.from_numpy(found).to(like.device)


def _over(heatmaps: Tensor, content: Tensor, size: tuple[int, int], inwards: bool) -> Tensor:
    """Brings heatmaps (R, h, w) from an image of ``size`` (H, W) to the photograph in it, or back.

    Args:
        heatmaps: of the image, or of the photograph.
        content: (R, 4) where the photograph lies in the image, px.
        size: of the image, px.
        inwards: whether to return heatmaps of the photograph.
    """
    whole = torch.tensor([0.0, 0.0, size[1], size[0]]).expand(len(content), 4)
    if torch.equal(content, whole):
        return heatmaps
    return recover(heatmaps, whole, content) if inwards else recover(heatmaps, content, whole)


def _located(pairs: PairBatch, places: NDArray) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """Returns (P, 2) x / W, y / H of the points at ``places`` (P, 2), row and column, and the keys (9, P) of each."""
    rows, columns = places[:, 0], places[:, 1]
    points = pairs.src_kps.detach().cpu()[rows, columns].double()
    relative = relative_points(points, pairs.src_content.detach().cpu()[rows]).numpy()
    src, trg = (
        np.array([image_number(original.hash) for original in originals], np.uint64)
        for originals in (pairs.src_original, pairs.trg_original)
    )
    return relative, _keys_around(src[rows], trg[rows], relative)


def _keys_around(src: NDArray[np.uint64], trg: NDArray[np.uint64], points: NDArray) -> NDArray[np.uint64]:
    """Returns (9, P) keys under which points (P, 2) of images with these numbers may have been stored."""
    return point_keys(src[None], trg[None], on_grid(points)[None] + AROUND[:, None])


def _heatmap_size(record: Record) -> tuple[int, ...]:
    return record.heatmap.shape
