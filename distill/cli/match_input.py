"""The inputs of ``match``: target files, and points from the command line or a file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import ListConfig, OmegaConf
from torch import Tensor

from distill.core.errors import DataError
from distill.data.coco import is_coco
from distill.data.images import is_text, readable_suffixes, shown_name
from distill.data.json_values import is_bounded_number, shown
from distill.data.keypoints import UPLOADED
from distill.data.label_studio import is_label_studio, path_in
from distill.data.points_file import read_points_file
from distill.data.readers import numbers, read_csv, read_json
from distill.data.sleap import labelled_images

COLUMNS = (["x", "y"], ["part", "x", "y"], ["image", "part", "x", "y"])
"""The headers that a CSV file of points may have."""


@dataclass(frozen=True)
class Points:
    """Points of the source image.

    Attributes:
        xy: (1, N, 2) x, y in pixels of the source.
        names: of the parts, or their numbers from 0 on.
    """

    xy: Tensor
    names: list[str]


def targets(given: str | ListConfig, src: Path) -> tuple[list[Path], bool]:
    """Returns the target files, and whether they are those of a folder, of which damaged ones may be left out.

    Args:
        given: a file, a list of files, or a folder, whose images are taken except the source.
        src: the source image.

    Raises:
        DataError: when the list is empty, or the folder has no other image whose name is UTF-8; others are told.
    """
    if isinstance(given, ListConfig):
        if not given:
            raise DataError("Expected target images in trg but got an empty list; name one.")
        return [Path(str(path)) for path in given], False
    folder = Path(given)
    if not folder.is_dir():
        return [folder], False
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in readable_suffixes() and file.resolve() != src.resolve()]
    for file in images:
        if not is_text(file.name):
            print(f"left out: {shown_name(str(file))}: its name is not UTF-8")
    images = [file for file in images if is_text(file.name)]
    if not images:
        raise DataError(f"Expected images in the folder trg={folder} but found none besides the source; name another.")
    return images, True


def check_text(files: list[Path]) -> None:
    """Raises a DataError for an image whose name, or that of its folder, is not UTF-8: it could not be written."""
    for name in (text for file in files for text in (str(file), name_with_folder(file))):
        if not is_text(name):
            raise DataError(f"Expected names in UTF-8, as what is written is, but got {shown_name(name)}; rename it.")


def check_apart(src: Path, files: list[Path]) -> None:
    """Checks that files of points, which name an image by its folder's name and its own, tell the images apart.

    Args:
        src: the source image, which may be a target, too.
        files: the targets.

    Raises:
        DataError: naming two images of one name.
    """
    named: dict[str, Path] = {}
    for file in (src, *files):
        name = name_with_folder(file)
        other = named.setdefault(name, file)
        if other is not file and not (other is src and file.resolve() == src.resolve()):
            raise DataError(
                f"Expected images that differ in the name of their folder or their own, by which points.csv and keypoints.json name "
                f"them, but {other} and {file} are both {name}; rename one, or leave it out."
            )


def read_points(given: ListConfig | str, src: Path) -> Points:
    """Returns points, given as a list of pairs or as the name of a file.

    The file is JSON that holds such a list; or CSV with the columns x, y or part, x, y; or a file of points of a
    data set, see :mod:`distill.data.points_file`, of which the entry of the source image is taken. Parts are each given once.

    Args:
        given: the list, or the path.
        src: the source image, which a file may name by its own name or with its folder's.

    Raises:
        DataError: unless there are points that are pairs of numbers.
    """
    if not isinstance(given, str):
        return _pairs(OmegaConf.to_container(given))
    file = Path(given)
    if file.suffix.lower() in (".pkl", ".pickle"):
        raise DataError(
            f"Expected points in a CSV, JSON or .slp file but got {file}; pickles run code and are not read, convert it."
        )
    if file.suffix.lower() == ".slp":
        return _of_image(file, src, labelled_images(file))
    if file.suffix.lower() != ".csv":
        what = "points as [[x,y],...], or by image,"
        content, images = read_json(file, lambda content: (content, _image_names(content)), what)
        return _pairs(content, file) if images is None else _of_image(file, src, images)
    header, rows = read_csv(file)
    if header[0] == "scorer":  # DeepLabCut's
        return _of_image(file, src, labelled_images(file))
    if header not in COLUMNS:
        raise DataError(
            f"Expected the columns x, y, before them part or image, part, in {file} but got {', '.join(header)}; rename them."
        )
    if "image" in header:
        return _of_image(file, src, [row[0] for row in rows.values()])
    xy = np.stack([numbers(row[-2:], file, number) for number, row in rows.items()])
    names = _parts(rows, file) if "part" in header else [str(index) for index in range(len(rows))]
    return Points(torch.from_numpy(xy).float()[None], names)


def _parts(rows: dict[int, list[str]], file: Path) -> list[str]:
    """Returns the parts that the rows of a CSV file begin with; raises a DataError where one has none, or that of another."""
    first_row: dict[str, int] = {}
    for number, (cell, *_) in rows.items():
        part = cell.strip()
        if not part:
            raise DataError(
                f"Expected the name of a part in row {number} of {file} but got none; write it before x, y."
            )
        if part in first_row:
            raise DataError(
                f"Expected each part once but row {number} of {file} repeats {part} from row {first_row[part]}; remove a row."
            )
        first_row[part] = number
    return list(first_row)


def name_with_folder(image: Path) -> str:
    """Returns what files of points call an image: the name of its folder, wherever the program runs, and its own."""
    return "/".join(Path(os.path.abspath(image)).parts[-2:])


def _of_image(file: Path, src: Path, images: list[str]) -> Points:
    """Returns the points that a data set's file has of the source image."""
    found = read_points_file(file, [*images, src.name, name_with_folder(src)]).images
    mine = [name for name in found if _is_of(name, src)] or [name for name in found if _is_upload_of(name, src)]
    if len(mine) != 1 or not found[mine[0]].points:
        raise DataError(
            f"Expected points of {src.name} in {file} but found {len(mine)} entries; it has {sorted(found)[:5]}."
        )
    points = found[mine[0]].points
    odd = next((part for part in points if not is_text(part)), None)
    if odd is not None:
        raise DataError(f"Expected names of parts in UTF-8 in {file} but got {shown_name(odd)}; rename it.")
    return Points(torch.tensor([list(points.values())], dtype=torch.float32), list(points))


def _is_of(name: str, src: Path) -> bool:
    """Returns whether ``name`` is what a file of points calls the source: its own name, or that with its folder's."""
    with_folder = name_with_folder(src)
    return name in (str(src), src.name, with_folder) or name.endswith(f"/{with_folder}")


def _is_upload_of(name: str, src: Path) -> bool:
    """Returns whether ``name`` is what Label Studio calls the source after its upload."""
    file = name.rpartition("/")[2]
    return UPLOADED.match(file) is not None and UPLOADED.sub("", file, count=1) == src.name


def _image_names(content: Any) -> list[str] | None:
    """Returns the names of the images that JSON is about, in Label Studio's format, COCO's or our own; None for a mere list."""
    if is_label_studio(content):  # one of the texts in a task's data names its image; the reader says which
        data = [task["data"].values() for task in content if isinstance(task["data"], dict)]
        names = [path_in(value) for values in data for value in values if isinstance(value, str)]
    elif is_coco(content):
        entries = content["images"] if isinstance(content["images"], list) else []  # the reader says what is wrong
        names = [str(entry.get("file_name")) for entry in entries if isinstance(entry, dict)]
    else:
        return list(content) if isinstance(content, dict) else None
    return [name.replace("\\", "/") for name in names]


def _pairs(given: Any, file: Path | None = None) -> Points:
    pairs = given if isinstance(given, list) else []
    if not pairs or not all(isinstance(p, list) and len(p) == 2 and all(map(is_bounded_number, p)) for p in pairs):
        place = "" if file is None else f" in {file}"
        raise DataError(
            f"Expected points as [[x,y],...], x and y in pixels of the source,{place} but got {shown(given)}; correct them."
        )
    return Points(torch.tensor([pairs], dtype=torch.float32), [str(number) for number in range(len(pairs))])
