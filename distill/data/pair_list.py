"""Lists of pairs in a file, so that others can score the very same ones."""

from collections.abc import Sequence
from pathlib import Path

from distill.core.errors import DataError
from distill.data.readers import read_csv

COLUMNS = ["source_image", "target_image"]


def pair_list(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns the content of a list: CSV with the columns source_image and target_image."""
    return "\n".join([",".join(COLUMNS), *(f'"{src}","{trg}"' for src, trg in pairs)]) + "\n"


def read_pair_list(file: Path, known: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of a list.

    Args:
        file: what :func:`pair_list` makes.
        known: names of the images that there are.

    Raises:
        DataError: when the file cannot be read, or names an image that is not known.
    """
    header, rows = read_csv(file, "give a list of pairs in data.pairs")
    if header != COLUMNS:
        raise DataError(
            f"Expected the columns {COLUMNS} in {file} but got {header}; give a list of pairs in data.pairs."
        )
    names = set(known)
    for number, row in enumerate(rows, start=2):
        unknown = [name for name in row if name not in names]
        if unknown:
            raise DataError(
                f"Expected images of this split in row {number} of {file} but there is no {unknown[0]}; check data.root "
                "and data.split."
            )
    return [(src, trg) for src, trg in rows]
