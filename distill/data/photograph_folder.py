"""The photographs of a folder, directly in it or in sub-folders."""

from pathlib import Path

from distill.core.errors import DataError
from distill.data.datasets.folder import find_photographs
from distill.data.images import readable_suffixes


def photographs_in(root: Path) -> list[str]:
    """Returns the names of photographs relative to ``root``: those directly in it, or without any those in its sub-folders.

    Photographs that lie directly in a folder are of one kind; otherwise each sub-folder holds a kind.

    Raises:
        DataError: when there are none.
    """
    if not root.is_dir():
        raise DataError(f"Expected root to be a folder of photographs but there is none at {root}; correct it.")
    direct = sorted(
        file.name
        for file in root.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in readable_suffixes()
    )
    return direct or find_photographs(root)[0]
