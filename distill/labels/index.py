"""The index of a folder of labels: which record lies where.

It is kept as a Parquet file with the columns ``key`` (uint64, in ascending order), ``file`` and ``row``; its metadata
holds the names and sizes of the files it knows. It only saves time: it can be made from the files at any moment, files
that it does not know are read, and what it says of files that are gone is left aside.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distill.core.errors import LabelError
from distill.labels.metadata import parse, texts
from distill.labels.shard import SUFFIX, Shard, write_whole

FILE = "index.parquet"
FORMAT = "distill-label-index-2"
BY_PIXELS = "distill-label-index-1"
"""The previous format, whose keys are of points in px; such an index is ignored."""
COLUMNS = {"key": pa.uint64(), "file": pa.int32(), "row": pa.int32()}
COMPRESSIONS = ("SNAPPY", "UNCOMPRESSED")
"""Of the columns: what pyarrow writes by default. Others unpack a few kilobytes to gigabytes."""
LABEL_BYTES = 32
"""Bytes that a label takes in its file beside its heatmap."""


@dataclass(frozen=True)
class Index:
    """Where records lie.

    Attributes:
        files: paths that ``file`` counts.
        key: (R,) in ascending order.
        file: (R,) int32.
        row: (R,) int32, in its file.
    """

    files: Sequence[Path]
    key: NDArray[np.uint64]
    file: NDArray[np.int32]
    row: NDArray[np.int32]

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> "Index":
        """Returns the index of open files."""
        parts = [(shard.path, shard.columns.keys()) for shard in shards]
        files = [path for path, _ in parts]
        key = np.concatenate([np.zeros(0, np.uint64), *(keys for _, keys in parts)])
        counts = [len(keys) for _, keys in parts]
        file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        row = np.concatenate([np.zeros(0, np.int32), *(np.arange(count, dtype=np.int32) for count in counts)])
        return cls(files, key, file, row)._sorted()

    def __len__(self) -> int:
        return len(self.key)

    def distinct(self) -> int:
        """Returns the number of points that have a record; several records of one point count once."""
        return int(np.count_nonzero(np.diff(self.key))) + 1 if len(self) else 0

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns for each of ``keys`` the place of its first record in this index, -1 where there is none."""
        if not len(self):
            return np.full(keys.shape, -1, np.int64)
        place = np.searchsorted(self.key, keys)
        known = self.key[np.minimum(place, len(self) - 1)] == keys
        return np.where(known, place, -1)

    def joined(self, other: "Index") -> "Index":
        """Returns what this and ``other`` know; of equal keys this one's come first."""
        return Index(
            [*self.files, *other.files],
            np.concatenate([self.key, other.key]),
            np.concatenate([self.file, other.file + np.int32(len(self.files))]),
            np.concatenate([self.row, other.row]),
        )._sorted()

    def without(self, gone: set[Path]) -> "Index":
        """Returns the index without what lies in the files ``gone``."""
        kept = [path not in gone for path in self.files]
        if all(kept):
            return self
        number = np.cumsum(kept, dtype=np.int32) - 1
        rows = np.array(kept)[self.file]
        files = [path for path in self.files if path not in gone]
        return Index(files, self.key[rows], number[self.file[rows]].astype(np.int32), self.row[rows])

    def _sorted(self) -> "Index":
        order = np.argsort(self.key, kind="stable")
        return Index(self.files, self.key[order], self.file[order], self.row[order])


def label_files(folder: Path) -> dict[Path, int]:
    """Returns the sizes in bytes of the files of labels in ``folder``, by path in alphabetical order.

    Raises:
        LabelError: when ``folder`` is no folder or cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            named = (entry for entry in entries if entry.name.endswith(SUFFIX) and not entry.name.startswith("."))
            found = {entry.path: entry.stat().st_size for entry in named}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LabelError(f"Expected a folder of labels at {folder} but got: {error}; set labels.dir.") from error
    return {Path(path): found[path] for path in sorted(found)}


def write_index(folder: Path, index: Index, fingerprint: Mapping[str, str]) -> Path:
    """Writes the index of a folder of labels, whole or not at all; returns the path of the file.

    Args:
        folder: that the label files lie in.
        index: of all label files in ``folder``.
        fingerprint: of the teacher that made the labels.

    Raises:
        OSError, DataError: when the file cannot be written.
    """
    sizes = {path.name: path.stat().st_size for path in index.files}
    about = {"format": FORMAT, "fingerprint": dict(fingerprint), "files": sizes}
    table = pa.table({"key": index.key, "file": index.file, "row": index.row})
    buffer = BytesIO()
    pq.write_table(table.replace_schema_metadata({"distill": json.dumps(about)}), buffer, write_page_checksum=True)
    write_whole(folder / FILE, buffer.getvalue())
    return folder / FILE


def read_index(folder: Path) -> tuple[Index, dict[str, str], dict[Path, int]]:
    """Returns the index that lies in ``folder``, the fingerprint it was made under, and the sizes of its files.

    Without an index there, all are empty. Of one whose files are all gone no row is read, and one whose files are partly gone is
    left aside where those that are left have no room for its rows.

    Raises:
        LabelError: when it is damaged or something else, or has more rows than its files have room for.
    """
    path = folder / FILE
    if not path.exists():
        return Index.of([]), {}, {}
    try:
        # From memory and without threads: those of a parent are not there in a process that was forked from it.
        source = pa.BufferReader(path.read_bytes())
        parquet = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
        about = parse((parquet.schema_arrow.metadata or {}).get(b"distill"), (FORMAT, BY_PIXELS))
        if about["format"] == BY_PIXELS:
            return Index.of([]), {}, {}
        if any(Path(name).name != name for name in texts(list(about["files"]), "files")):
            raise ValueError("Expected file names without folders")
        sizes = {folder / name: size for name, size in about["files"].items()}
        present = label_files(folder)
        known = [present[name] for name in sizes if name in present]
        room = sum(known) // LABEL_BYTES
        if 0 < len(known) < len(sizes) and _count(parquet) > room:
            return Index.of([]), {}, {}
        key, file, row = _read_rows(parquet, room) if known else _no_rows()
        if len(key) and not (
            file.min() >= 0 and file.max() < len(sizes) and row.min() >= 0 and (key[1:] >= key[:-1]).all()
        ):
            raise ValueError("it is out of order")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # pyarrow's errors are among them
        raise LabelError(
            f"Expected an index of labels in {path} but it cannot be read ({error}); delete it, or make it again with: "
            f"python -m distill label repair labels.dir={folder}"
        ) from error
    return Index(list(sizes), key, file, row), about["fingerprint"], sizes


def _count(file: pq.ParquetFile) -> int:
    """Returns how many rows an index has; raises a ValueError when it is not written as :func:`write_index` does it."""
    about, schema = file.metadata, file.schema_arrow
    if schema.names != list(COLUMNS) or schema.types != list(COLUMNS.values()):
        raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
    rows = int(about.num_rows)
    for place in range(len(COLUMNS)):
        chunks = [about.row_group(group).column(place) for group in range(about.num_row_groups)]
        if any(chunk.compression not in COMPRESSIONS for chunk in chunks):
            raise ValueError(f"it is not compressed by {COMPRESSIONS[0]}")
        rows = max(rows, sum(chunk.num_values for chunk in chunks))  # the one may be told wrong, the others are read
    return rows


def _no_rows() -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    return np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int32)


def _read_rows(file: pq.ParquetFile, room: int) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    """Returns the columns of an index, which are looked at before memory is taken for them: equal rows take no bytes.

    Args:
        file: the index.
        room: how many labels its files hold, at most.

    Raises:
        ValueError: when it has more rows, or is not written as :func:`write_index` does it.
    """
    rows = _count(file)
    if rows > room:
        raise ValueError(f"it has {rows} rows, and its files have room for {room} labels")
    table = file.read(use_threads=False)
    key, number, row = (table[name].to_numpy() for name in COLUMNS)
    return key, number, row
