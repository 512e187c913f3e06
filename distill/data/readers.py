"""Readers of text, JSON, CSV and MATLAB files whose errors name the file."""

import csv
import io
import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, whosmat

from distill.core.errors import DataError

T = TypeVar("T")

LARGEST_MAT = 2**24
"""Bytes of a MATLAB file, unpacked. Those of the benchmarks hold a few dozen numbers."""
COMPRESSED = 15
"""Kind of a compressed variable in a MATLAB file."""


def read_text(file: Path, hint: str = "restore the file") -> str:
    """Returns a file's text, with or without a byte-order mark.

    Args:
        file: to read.
        hint: what to do when it cannot be read.

    Raises:
        DataError: when it is missing, empty, or not in UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected to read {file} but {file.name} cannot be read ({error}); {hint}.") from error
    if not text.strip():
        raise DataError(f"Expected lines in {file} but it is empty; restore the file.")
    return text


def read_csv(file: Path, hint: str = "restore the file") -> tuple[list[str], dict[int, list[str]]]:
    """Returns the header and the rows of a CSV file, by their number in the file; empty rows count, and are left out.

    Raises:
        DataError: when it cannot be read, has no rows, semicolons between its cells, or a row that is shorter or longer than the
            header.
    """
    rows: dict[int, list[str]] = {}
    number = 0
    try:
        for number, row in enumerate(csv.reader(io.StringIO(read_text(file, hint)), strict=True), start=1):
            if any(map(str.strip, row)):
                rows[number] = row
    except csv.Error as error:
        raise DataError(
            f"Expected CSV in {file} but row {number + 1} cannot be read ({error}); restore the file."
        ) from error
    header = rows.pop(min(rows), []) if rows else []
    if not rows:
        raise DataError(f"Expected rows below the header of {file} but there are none; restore the file.")
    if len(header) == 1 and ";" in header[0]:
        raise DataError(
            f"Expected commas between the cells of {file} but its header is {header[0]}; write it with commas, and numbers with points."
        )
    for number, row in rows.items():
        if len(row) != len(header):
            raise DataError(
                f"Expected {len(header)} cells in row {number} of {file} but got {len(row)}; restore the file."
            )
    return [name.strip() for name in header], rows


def read_json(file: Path, parse: Callable[[Any], T], what: str, hint: str = "restore the file") -> T:
    """Returns what ``parse`` makes of a JSON file.

    Args:
        file: to read.
        parse: takes the content apart; what it raises is reported with the file's name.
        what: the file should hold, for the error message.
        hint: what to do when it does not.

    Raises:
        DataError: when the file cannot be read, is no JSON, repeats a key, or does not hold ``what``.
    """
    try:
        return parse(json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique))
    except (
        OSError,
        RecursionError,
        OverflowError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
    ) as error:
        raise DataError(f"Expected {what} in {file} but {_found(error)}; {hint}.") from error


def _found(error: Exception) -> str:
    """Returns in words what was found instead of what a JSON file should hold."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON ({error})"
    if isinstance(error, OSError | UnicodeDecodeError):
        return f"it cannot be read ({error})"
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing"
    if isinstance(error, ValueError):
        return str(error)
    return f"its structure is another ({error})"


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a dictionary of the ``items`` of a JSON object; of a repeated key JSON keeps the last value only."""
    found = dict(items)
    if len(found) < len(items):
        counts = Counter(key for key, _ in items)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {repeated!r} comes twice in one object")
    return found


def own_name(name: str, file: Path) -> str:
    """Returns ``name``, a path below the folder of a data set that ``file`` names.

    Raises:
        DataError: when it leads out of that folder: a stranger's annotations do not choose what is read.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"Expected {file} to name files of its own folder but it names {name!r:.100}; do not trust it.")
    return name


def read_mat(file: Path, key: str) -> NDArray[np.float64]:
    """Returns an array of a MATLAB file.

    Raises:
        DataError: when the file cannot be read, grows beyond :data:`LARGEST_MAT`, or holds no such array of numbers.
    """
    try:
        _check_mat(file.read_bytes())
        _check_array(file, key)
        return np.asarray(loadmat(file, variable_names=[key])[key], np.float64)
    except Exception as error:  # a truncated file raises exceptions of many types
        raise DataError(f"Expected {key} in {file} but it cannot be read ({error}); restore the file.") from error


def _check_array(file: Path, key: str) -> None:
    """Raises a ValueError unless a variable is an array of numbers of a bounded size: memory is taken before its bytes are read."""
    for name, shape, kind in whosmat(file):
        is_array = kind in ("double", "single", "logical") or kind.lstrip("u").startswith("int")
        if name == key and (not is_array or 8 * math.prod(shape) > LARGEST_MAT):
            raise ValueError(f"it is a {kind} of {' x '.join(map(str, shape))}")


def _check_mat(content: bytes) -> None:
    """Raises a ValueError for a MATLAB file whose compressed variables grow too large; loadmat unpacks them whole.

    A file of version 5 has a header of 128 bytes, whose last two say the order of bytes, and then variables: their kind, their
    length, and as many bytes. Version 4, which has a zero among its first four bytes, is not compressed.
    """
    order = "<" if content[126:128] == b"IM" else ">"  # as scipy takes it
    place, total = len(content) if 0 in content[:4] else 128, 0
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        place += 8
        if kind == COMPRESSED:
            total += len(zlib.decompressobj().decompress(content[place : place + length], LARGEST_MAT + 1 - total))
        if total > LARGEST_MAT:
            raise ValueError(f"it grows to more than {LARGEST_MAT / 2**20:.0f} MiB")
        place += length


def numbers(cells: list[str], file: Path, row: int) -> NDArray[np.float64]:
    """Returns cells as finite numbers.

    Raises:
        DataError: naming the file and the row when one is none.
    """
    try:
        values = np.array([_number(cell) for cell in cells])
    except ValueError as error:
        raise DataError(f"Expected numbers in row {row} of {file} but {error}; restore the file.") from error
    if not np.isfinite(values).all():
        raise DataError(f"Expected finite numbers in row {row} of {file} but got {cells}; restore the file.")
    return values


def _number(cell: str) -> float:
    if "_" in cell:  # Python takes 2_0 for 20
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float(cell)
