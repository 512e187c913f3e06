"""Copies of photographs in the layouts of other programs: under safe names, and with their orientation applied."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

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


def safe_names(names: Iterable[str], suffix: str | None = None) -> dict[str, str]:
    """Returns for each "folder/file" a name of letters, digits, dots and underscores only; none twice.

    Capitals and small letters count as the same. Two files of a folder differ before their ending too, because other programs
    find the annotation of "a.png" as "a.txt".

    Args:
        names: relative to a folder.
        suffix: of the new names; without it that of the old ones.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        path = Path(name)
        stem = "/".join(re.sub(r"[^A-Za-z0-9_]", "_", part) for part in path.with_suffix("").parts)
        candidate, number = stem, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken.add(candidate.lower())
        found[name] = candidate + (suffix or path.suffix.lower())
    return found


def _is_oriented(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION, 1) != 1
    except OSError:
        return True  # the reader says what is wrong
