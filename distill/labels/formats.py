"""Labels as tables that other programs read: Parquet, CSV, JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from distill.core.errors import ConfigError, LabelError, nearest
from distill.core.files import replacing
from distill.core.jsonable import jsonable
from distill.labels.folder import LabelFolder
from distill.labels.records import Columns

SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")


def export(folder: Path, file: Path) -> int:
    """Writes the labels of ``folder``, one row each, to ``file``, whose suffix says how; returns how many.

    Columns: the names and fingerprints of both original images, their sizes in px, the point and its match in px of these
    sizes, and the confidence. Heatmaps are left out. JSON is one list, JSONL one object a line.

    Raises:
        ConfigError: for another suffix, or a file that is there already.
        LabelError: when there are no labels, they are damaged, or the file cannot be written to its end.
        DataError: when the folder of the file cannot be made or written to.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(
            f"Expected label.file to end in a known suffix but got {file}; {nearest(file.suffix, SUFFIXES)}."
        )
    if file.exists():
        raise ConfigError(f"Expected label.file to be new but {file} is there; choose another name.")
    labels = LabelFolder(folder)
    if not len(labels.index):
        raise LabelError(f"Expected labels in {folder} but found none; set labels.dir.")
    try:
        with replacing(file) as unfinished:
            _write(unfinished, file.suffix, _tables(labels), labels.fingerprint or {})
    except OSError as error:
        raise LabelError(f"Expected to write {file} but got: {error}; choose another label.file.") from error
    return labels.index.distinct()


def _tables(labels: LabelFolder) -> Iterator[pa.Table]:
    """Yields the labels file by file, each point once."""
    index = labels.index
    first = np.concatenate([[True], index.key[1:] != index.key[:-1]]).nonzero()[0]
    for _, columns in labels.read(first):
        yield _table(columns)


def _table(columns: Columns) -> pa.Table:
    table: dict[str, Any] = {}
    for side in ("src", "trg"):
        numbers = getattr(columns, side)
        values = {
            "name": pa.array([image.name for image in columns.images]),
            "hash": pa.array([image.hash for image in columns.images]),
            "height": pa.array([image.size[0] for image in columns.images], pa.int32()),
            "width": pa.array([image.size[1] for image in columns.images], pa.int32()),
        }
        table |= {f"{side}_{name}": value.take(pa.array(numbers)) for name, value in values.items()}
    sizes = np.array([image.size[::-1] for image in columns.images], np.float32)
    for side, points in (("src", columns.src_point), ("trg", columns.trg_point)):
        pixels = points * sizes[getattr(columns, side)]
        table |= {f"{side}_{axis}": np.ascontiguousarray(pixels[:, a]) for a, axis in enumerate("xy")}
    return pa.table({**table, "confidence": columns.confidence})


def _write(path: Path, suffix: str, tables: Iterator[pa.Table], fingerprint: dict[str, str]) -> None:
    first = next(tables)
    everything = (table for part in ((first,), tables) for table in part)
    if suffix == ".parquet":
        schema = first.schema.with_metadata({"made by": json.dumps(fingerprint)})
        with pq.ParquetWriter(path, schema) as writer:
            for table in everything:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
    elif suffix == ".csv":
        with pyarrow.csv.CSVWriter(path, first.schema) as writer:
            for table in everything:
                writer.write_table(table)
    else:
        before, between, after = ("[\n", ",\n", "\n]\n") if suffix == ".json" else ("", "\n", "\n")
        rows = (json.dumps(jsonable(row), ensure_ascii=False) for table in everything for row in table.to_pylist())
        with open(path, "w", encoding="utf-8") as file:
            file.write(before + next(rows))
            file.writelines(between + row for row in rows)
            file.write(after)
