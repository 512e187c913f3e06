"""Points of a user's photographs: ``points.csv``, ``points.json``, or the format of an annotation tool.

The tools' formats are COCO's keypoints, Label Studio's tasks (both JSON), DeepLabCut's CSV and SLEAP's ``.slp``; what a file is
shows its content, or its suffix. Pixel convention of ``points.csv`` and ``points.json``: the centre of the top-left pixel is
(0.5, 0.5), as everywhere here; nothing is added. The others' modules say theirs.
"""

import csv
import os
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from distill.core.errors import DataError
from distill.data.coco import is_coco, read_coco_images
from distill.data.json_values import entry_of, numbers_in, object_in, shown
from distill.data.keypoints import ImageKeypoints, category_of
from distill.data.label_studio import is_label_studio, read_label_studio
from distill.data.readers import numbers, read_csv, read_json
from distill.data.sleap import read_deeplabcut, read_slp

T = TypeVar("T")

DEFAULT_NAMES = ("points.csv", "points.json")


@dataclass(frozen=True)
class PointsFile:
    """A file of points.

    Attributes:
        path: of the file.
        images: what it says, by the image's name relative to the folder.
        exact_boxes: whether each box has to contain all points of its image to the pixel. COCO's boxes surround the
            visible object, and need not.
        with_unsure: by image, what ``images`` says together with the points that a matcher set and was unsure of, which are no
            annotation; images that have no others are here alone.
    """

    path: Path
    images: dict[str, ImageKeypoints]
    exact_boxes: bool = True
    with_unsure: dict[str, ImageKeypoints] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        """The names of all parts, in alphabetical order."""
        return sorted({part for annotated in self.images.values() for part in annotated.points})


def find_points_file(root: Path, points: str | None) -> Path | None:
    """Returns the file that ``points`` names, otherwise ``points.csv`` or ``points.json`` in the folder if there is one.

    A relative name is looked for where the program runs, then in the folder.
    """
    if points is None:
        return next((root / name for name in DEFAULT_NAMES if (root / name).is_file()), None)
    given = Path(points)
    return root / given if not given.exists() and (root / given).is_file() else given


def read_points_file(file: Path, known: list[str], by_person: bool = False, root: Path | None = None) -> PointsFile:
    """Reads a file of points, without what a matcher was unsure of.

    Args:
        file: to read.
        known: names of the images that there are, relative to the folder.
        by_person: whether all that a matcher set is left out.
        root: the folder, whose own name may stand in front of an image's, as in what ``match`` writes.

    Raises:
        DataError: naming the file, and in CSV the row, when it cannot be read, repeats a part of an image, or names an
            image that is not known.
    """
    found = read_keypoints(file, known, root)
    given = {n: _without(image, image.confidence if by_person else ()) for n, image in found.images.items()}
    sure = {name: _without(image, image.unsure) for name, image in given.items()}
    images = {name: image for name, image in sure.items() if image.points}
    if not images and any(image.points for image in found.images.values()):
        raise DataError(
            f"Expected annotated points in {file} but a matcher was unsure of all; correct or confirm some."
        )
    if not images:
        raise DataError(f"Expected annotated points in {file} but it has none; give some as image, part, x, y.")
    return replace(found, images=images, with_unsure={name: image for name, image in given.items() if image.points})


def _without(image: ImageKeypoints, parts: Container[str]) -> ImageKeypoints:
    """Returns what is known of an image without some of its parts."""
    points = {part: point for part, point in image.points.items() if part not in parts}
    confidence = {part: value for part, value in image.confidence.items() if part in points}
    return replace(image, points=points, confidence=confidence, unsure=image.unsure & points.keys())


def read_keypoints(file: Path, known: list[str], root: Path | None = None) -> PointsFile:
    """Reads a file of points with all that a matcher set; arguments and errors are those of :func:`read_points_file`.

    Where the file names no category, it is the image's sub-folder.
    """
    if file.suffix.lower() == ".slp":
        return PointsFile(file, _told(file, lambda: read_slp(file, known)), exact_boxes=False)
    if file.suffix.lower() == ".json":
        what = 'points as {"<folder>/<image>": {"points": {"<part>": [x, y]}}}, or a format of annotation tools,'
        return read_json(file, lambda content: _parse(file, content, known, root), what, "correct it")
    if _is_deeplabcut(file):
        return PointsFile(file, _told(file, lambda: read_deeplabcut(file, known)), exact_boxes=False)
    return _in_folder(file, _read_csv(file), known, root)


def _in_folder(file: Path, images: dict[str, ImageKeypoints], known: list[str], root: Path | None) -> PointsFile:
    """Returns what one of our own formats says, by the names of the images in the folder, and with their categories."""
    if root is not None:
        _leave_out_root(images, set(known), f"{Path(os.path.abspath(root)).name}/")
    unknown = sorted(images.keys() - set(known))
    if unknown:
        raise DataError(
            f"Expected images of the folder in {file} but there is no {unknown[0]}; name them relative to the folder."
        )
    for name, image in images.items():
        image.category = category_of(name)
    return PointsFile(file, images)


def _leave_out_root(images: dict[str, ImageKeypoints], known: set[str], front: str) -> None:
    """Renames images that are known only without ``front``; where both names are given, the error about an unknown one tells."""
    for name in images.keys() - known:
        inside = name.removeprefix(front)
        if inside in known and inside not in images:
            images[inside] = images.pop(name)


def _told(file: Path, read: Callable[[], T]) -> T:
    """Returns what ``read`` returns; a ValueError names the file."""
    try:
        return read()
    except ValueError as error:
        raise DataError(f"Expected points by image in {file} but {error}.") from error


def _is_deeplabcut(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text), [])[:1] == ["scorer"]  # the first line may be empty
    except (OSError, UnicodeDecodeError, csv.Error):
        return False  # the reader of CSV says what is wrong


def _parse(file: Path, content: Any, known: list[str], root: Path | None) -> PointsFile:
    if is_coco(content):
        return PointsFile(file, read_coco_images(content, known), exact_boxes=False)
    if is_label_studio(content):
        return PointsFile(file, read_label_studio(content, known), exact_boxes=False)
    entries = object_in(content, "the file")
    return _in_folder(file, {name: _entry(name, entry) for name, entry in entries.items()}, known, root)


def _entry(name: str, content: Any) -> ImageKeypoints:
    entry = object_in(content, f"the entry of {name}")
    points = {}
    for part, value in object_in(entry_of(entry, "points", f"the entry of {name}"), f"points of {name}").items():
        x, y = numbers_in(value, 2, f"the point {part} of {name}", "x, y in px")
        points[part] = x, y
    box = None
    if entry.get("bbox") is not None:
        x0, y0, x1, y1 = numbers_in(entry["bbox"], 4, f"the bbox of {name}", "x0, y0, x1, y1 in px")
        box = x0, y0, x1, y1
        if not (x1 > x0 and y1 > y0):
            raise ValueError(f"the bbox {shown(entry['bbox'])} of {name} is empty; it is x0, y0, x1, y1")
    unknown = entry.keys() - {"points", "bbox"}
    if unknown:
        raise ValueError(f"the entry of {name} has the unknown key {min(unknown)!r} beside points and bbox")
    return ImageKeypoints(points, box)


def _read_csv(file: Path) -> dict[str, ImageKeypoints]:
    header, rows = read_csv(file)
    if header != ["image", "part", "x", "y"]:
        raise DataError(f"Expected the columns image, part, x, y in {file} but got {', '.join(header)}; rename them.")
    found: dict[str, ImageKeypoints] = {}
    first_row: dict[tuple[str, str], int] = {}
    for number, (image, part, *xy) in rows.items():
        part = part.strip()
        if not part:
            raise DataError(
                f"Expected the name of a part in row {number} of {file} but got none; write it before x, y."
            )
        if (image, part) in first_row:
            raise DataError(
                f"Expected each part of an image once but row {number} of {file} repeats {part} of {image} from row "
                f"{first_row[image, part]}; points belong to one object: remove a row, or crop one image for each object."
            )
        first_row[image, part] = number
        x, y = numbers(xy, file, number).tolist()
        found.setdefault(image, ImageKeypoints({})).points[part] = x, y
    return found
