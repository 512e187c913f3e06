"""Lists of pairs in CSV files, so that the same pairs can be scored again."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.core.errors import DataError
from distill.data.readers import read_csv

COLUMNS = ["source_image", "target_image"]


def pair_list(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns the content of a list: CSV with the columns source_image and target_image."""
    return "\n".join([",".join(COLUMNS), *(f"{_quoted(src)},{_quoted(trg)}" for src, trg in pairs)]) + "\n"


def pairs_fingerprint(names: Iterable[str]) -> str:
    """Returns 16 hexadecimal digits that name a list of pairs, each of which is named, in its order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]


def read_pair_list(file: Path, known: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of a list.

    Args:
        file: what :func:`pair_list` makes.
        known: names of the images that there are.

    Raises:
        DataError: naming the row, when the file cannot be read, names an image that is not known, pairs an image with
            itself, or repeats a pair.
    """
    header, rows = read_csv(file, "give a list of pairs in data.pairs")
    if header != COLUMNS:
        raise DataError(
            f"Expected the columns {COLUMNS} in {file} but got {header}; give a list of pairs in data.pairs."
        )
    names = set(known)
    first_row: dict[tuple[str, str], int] = {}
    for number, row in rows.items():
        unknown = [name for name in row if name not in names]
        if unknown:
            raise DataError(
                f"Expected images of this split in row {number} of {file} but there is no {unknown[0]}; check data.root "
                "and data.split."
            )
        src, trg = row
        if src == trg:
            raise DataError(f"Expected two images in row {number} of {file} but got {src} twice; remove the row.")
        if (src, trg) in first_row:
            raise DataError(
                f"Expected each pair once but row {number} of {file} repeats row {first_row[src, trg]}; remove one."
            )
        first_row[src, trg] = number
    return list(first_row)


def _quoted(name: str) -> str:
    """Returns a cell of a CSV file; quotation marks in a name are doubled."""
    return '"' + name.replace('"', '""') + '"'
