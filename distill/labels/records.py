"""Labels in memory, as columns.

A record is the label of one point of one pair. Its key says which images and which point; its checksum says whether
its values are still those that were written.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GRID = 100_000
"""Points are told apart on a grid of this many cells along each side of an image: 0.005 px of 512."""

FURTHEST = 2**31 / GRID
"""How many sides of its image a point may lie away, for a place on the grid of 32 bits."""

ROUNDING = (4e-4, 4e-4, 0.005)
"""How far x / W, y / H and the confidence of one label may lie apart: other threads or processors add in another order."""

ARRAYS = ("src", "trg", "src_point", "trg_point", "confidence", "heatmap")


class Image(NamedTuple):
    """An image that labels speak of.

    Attributes:
        hash: fingerprint of the original, see :class:`distill.core.types.Original`.
        name: for people.
        size: height, width of the original, px.
    """

    hash: str
    name: str
    size: tuple[int, int]


class Record(NamedTuple):
    """The label of one point.

    Attributes:
        src: source image.
        trg: target image.
        src_point: (2,) x / W, y / H in the source image.
        trg_point: (2,) x / W, y / H in the target image.
        confidence: in [0, 1].
        heatmap: (h, w) over the whole target image, non-negative.
    """

    src: Image
    trg: Image
    src_point: NDArray[np.float32]
    trg_point: NDArray[np.float32]
    confidence: float
    heatmap: NDArray[np.float16]


@dataclass(frozen=True)
class Columns:
    """R records, column by column.

    Attributes:
        images: what ``src`` and ``trg`` count.
        src: (R,) int32, number of the source image.
        trg: (R,) int32, of the target image.
        src_point: (R, 2) float32, x / W, y / H in the source image.
        trg_point: (R, 2) float32, x / W, y / H in the target image.
        confidence: (R,) float32 in [0, 1].
        heatmap: (R, h, w) float16 over the whole target image, non-negative.
    """

    images: Sequence[Image]
    src: NDArray[np.int32]
    trg: NDArray[np.int32]
    src_point: NDArray[np.float32]
    trg_point: NDArray[np.float32]
    confidence: NDArray[np.float32]
    heatmap: NDArray[np.float16]

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Columns":
        """Returns ``records``, at least one, whose heatmaps are of one size."""
        known = {image.hash: image for record in records for image in (record.src, record.trg)}
        images = [known[name] for name in sorted(known)]
        number = {image.hash: n for n, image in enumerate(images)}
        return cls(
            images,
            np.array([number[r.src.hash] for r in records], np.int32),
            np.array([number[r.trg.hash] for r in records], np.int32),
            np.array([r.src_point for r in records], np.float32),
            np.array([r.trg_point for r in records], np.float32),
            np.array([r.confidence for r in records], np.float32),
            np.stack([r.heatmap for r in records]).astype(np.float16),
        )

    def __len__(self) -> int:
        return len(self.src)

    def take(self, rows: NDArray[np.integer] | slice) -> "Columns":
        """Returns the records at ``rows``; reads no others."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ARRAYS})

    def keys(self) -> NDArray[np.uint64]:
        """Returns (R,) the keys of the records."""
        numbers = np.array([image_number(image.hash) for image in self.images], np.uint64)
        return point_keys(numbers[self.src], numbers[self.trg], on_grid(self.src_point))

    def checksums(self) -> NDArray[np.uint32]:
        """Returns (R,) CRC-32 of everything a record says, its images' fingerprints included."""
        columns = (self.src_point, self.trg_point, self.confidence, self.heatmap)
        rows = [np.ascontiguousarray(c).reshape(len(self), -1).view(np.uint8) for c in columns]
        names = [image.hash.encode() for image in self.images]
        numbers = zip(self.src.tolist(), self.trg.tolist(), np.concatenate(rows, 1), strict=True)
        sums = (zlib.crc32(row, zlib.crc32(names[trg], zlib.crc32(names[src]))) for src, trg, row in numbers)
        return np.fromiter(sums, np.uint32, len(self))

    def answers(self) -> NDArray[np.float32]:
        """Returns (R, 3): x / W, y / H in the target image, and the confidence."""
        return np.column_stack([self.trg_point, self.confidence])

    def describe(self, row: int) -> str:
        """Returns for people which point a record is of, in px of the original: "boat/3 -> boat/7 at (12.5, 80.25)"."""
        src, trg = self.images[self.src[row]], self.images[self.trg[row]]
        x, y = (self.src_point[row] * src.size[::-1]).tolist()
        return f"{src.name} -> {trg.name} at ({x:.2f}, {y:.2f})"


def differ(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns (R,) whether two answers (R, 3) to the same points lie further apart than :data:`ROUNDING`."""
    return (np.abs(one - other) > ROUNDING).any(1)


def joined(parts: Iterable[Columns]) -> Columns:
    """Returns the records of all ``parts``, at least one, in the order of their images' fingerprints and points."""
    parts = list(parts)
    known = {image.hash: image for part in reversed(parts) for image in part.images}
    used = {part.images[n].hash for part in parts for n in np.unique([part.src, part.trg]).tolist()}
    images = [known[name] for name in sorted(used)]
    number = {image.hash: n for n, image in enumerate(images)}
    columns: dict[str, list[NDArray]] = {field.name: [] for field in fields(Columns) if field.name != "images"}
    for part in parts:
        renumbered = np.array([number.get(image.hash, -1) for image in part.images], np.int32)
        for name in columns:
            values = getattr(part, name)
            columns[name].append(renumbered[values] if name in ("src", "trg") else values)
    whole = Columns(images, **{name: np.concatenate(values) for name, values in columns.items()})
    return whole.take(np.lexsort((whole.src_point[:, 1], whole.src_point[:, 0], whole.trg, whole.src)))


@lru_cache(maxsize=1 << 16)
def image_number(fingerprint: str) -> int:
    """Returns 64 bits of an image's fingerprint."""
    return int.from_bytes(blake2b(fingerprint.encode(), digest_size=8).digest(), "little")


def on_grid(points: NDArray) -> NDArray[np.int64]:
    """Returns (..., 2) cells of the grid on which points (..., 2), x / W, y / H, are told apart; what lies off it, at its edge."""
    near = np.clip(np.nan_to_num(points.astype(np.float64)), -FURTHEST, FURTHEST)
    return np.rint(near * GRID).astype(np.int64)


def point_keys(src: NDArray[np.uint64], trg: NDArray[np.uint64], cells: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns 64-bit keys of points: two in a million records are the same by chance once in 37 million stores.

    Args:
        src: (...,) numbers of source images, see :func:`image_number`.
        trg: (...,) of target images.
        cells: (..., 2) see :func:`on_grid`.
    """
    x, y = (cells[..., axis].astype(np.uint64) & np.uint64(0xFFFFFFFF) for axis in (0, 1))
    return _mixed(_mixed(_mixed(src) ^ trg) ^ (x << np.uint64(32) | y))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads every bit over all 64: a step of splitmix64 (Steele et al., OOPSLA 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
