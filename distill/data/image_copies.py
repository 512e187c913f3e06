"""Copies of photographs in the layouts of other programs: under safe names, and with their orientation applied."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from PIL import Image

from distill.data.images import ORIENTATION, read_rgb

JPEG_QUALITY = 95
JPEG = (".jpg", ".jpeg")


def copy_image(source: Path, target: Path, exif_orientation: bool) -> None:
    """Copies an image file; where its metadata have an orientation, or ``target`` is of another format, its pixels.

    Other readers apply the orientation or ignore it; the copy has none, so that the points suit it in both cases.

    Args:
        source: to copy.
        target: where to; its folder is made.
        exif_orientation: whether the points belong to the image as viewers show it.

    Raises:
        DataError: when the image cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    suffixes = source.suffix.lower(), target.suffix.lower()
    same_format = suffixes[0] == suffixes[1] or set(suffixes) <= set(JPEG)
    if same_format and not _is_oriented(source):
        shutil.copyfile(source, target)
    else:
        read_rgb(source, exif_orientation).save(target, quality=JPEG_QUALITY)


def safe_names(names: Collection[str], suffix: str | None = None) -> dict[str, str]:
    """Returns for each "folder/file" a name of letters, digits, dots and underscores only; none twice.

    Capitals and small letters count as the same. Folders stay apart, because their names may be categories. Two files of a
    folder differ before their ending too, because other programs find the annotation of "a.png" as "a.txt".

    Args:
        names: relative to a folder.
        suffix: of the new names; without it that of the old ones.
    """
    paths = {name: PurePosixPath(name) for name in names}
    taken: set[str] = set()
    folders = {PurePosixPath(): ""}
    for folder in sorted({above for path in paths.values() for above in path.parents[:-1]}):
        folders[folder] = _distinct(folders[folder.parent] + _plain(folder.name), taken) + "/"
    return {
        name: _distinct(folders[path.parent] + _plain(path.stem), taken) + (suffix or path.suffix.lower())
        for name, path in paths.items()
    }


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def _distinct(name: str, taken: set[str]) -> str:
    """Returns ``name``, with a number behind it if it is ``taken``, which what is returned is added to in small letters."""
    found, number = name, 1
    while found.lower() in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found.lower())
    return found


def _is_oriented(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION, 1) != 1
    except OSError:
        return True  # the reader says what is wrong
