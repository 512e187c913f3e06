"""PF-PASCAL (Ham et al., TPAMI 2018): pairs of photographs in the 20 categories of PASCAL VOC.

Files of the layout: ``JPEGImages/*.jpg``, ``Annotations/<category>/*.mat`` (``kps`` (K, 2), not a number where a point is
missing, and ``bbox``), and for each split a list of pairs in CSV: source_image, target_image, class (1 to 20, or its
name), then XA, YA, XB, YB, the common points separated by semicolons, which the training list lacks. Three namings are
in use: ``PF-dataset-PASCAL`` with ``test_pairs_pf_pascal.csv`` inside, ``PF-PASCAL`` with ``test_pairs.csv`` inside, and
``pf-pascal`` with ``test_pairs.csv`` beside a ``PF-dataset-PASCAL``; ``data.root`` may be any of them or the folder above.

Where a pair's ``.mat`` files are there, points and boxes are theirs, otherwise the list's. Coordinates are taken as they
stand. Rows that ask for a mirrored pair, as training lists have them, are left out.
"""

from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import (
    PAPER_SIDE,
    PhotographPairs,
    check_split,
)
from distill.data.readers import numbers, read_csv, read_mat

SPLITS = {"train": ("trn", "train"), "val": ("val",), "test": ("test",)}
FOLDERS = (".", "PF-dataset-PASCAL", "PF-PASCAL", "pf-pascal", "pf-pascal/PF-dataset-PASCAL")
COLUMNS = ("source_image", "target_image", "class")
POINTS = ("XA", "YA", "XB", "YB")
CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

Points = NDArray[np.float64]


class PFPascalPairs(PhotographPairs):
    """The benchmark's own pairs; points are scored in the photographs' own pixels, relative to the target image's side.

    Args:
        root: the folder with ``JPEGImages`` and ``Annotations``, or one above it.
        split: "train", "val" or "test".
        n_pairs: how many pairs, drawn by the seed; without it all, in the list's order.
        seed: of the draw.
        image_options: size, resize, convention, on_error and cache_mib, see :class:`ImageConfig`. The tolerance of the released
            code, which convention "paper" follows, is that of an image of 512 px, squashed.

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when a file is missing or malformed, or there are fewer pairs than asked for.
    """

    name = "pf_pascal"
    threshold: Threshold = "img"

    def __init__(
        self,
        root: str,
        split: str = "test",
        n_pairs: int | None = None,
        seed: int = 0,
        **image_options: Unpack[ImageOptions],
    ) -> None:
        check_split(split, SPLITS)
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.split, self.root = split, _folder(Path(root))
        # The list, the only source of points then, has those alone that both images of a pair show, without their numbers.
        self.numbered_by_pair = not (self.root / "Annotations").is_dir()
        self.list = _list(self.root, Path(root), split)
        self._rows: dict[tuple[str, str], tuple[str, tuple[Points, Points] | None]] = {}
        for number, pair, category, points in _read_list(self.list, self.ignored):
            if pair in self._rows:
                self.ignored[f"row {number} of {self.list.name}"] = f"repeats the pair {pair[0]} -> {pair[1]}"
            else:
                self._rows[pair] = category, points
        pairs = self._subsample(list(self._rows), n_pairs, seed)
        self._start(pairs, (self._image_file(name) for pair in pairs for name in pair), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        pair = self.pairs[index]
        category, listed = self._rows[pair]
        files = [self.root / "Annotations" / category / f"{Path(name).stem}.mat" for name in pair]
        if all(file.is_file() for file in files):
            src, trg = (self._annotated(name, category, file) for name, file in zip(pair, files, strict=True))
        elif listed is not None:
            src, trg = (
                self._image_annotation(n, category, p, _around(p), self.list) for n, p in zip(pair, listed, strict=True)
            )
        else:
            absent = next(file for file in files if not file.is_file())
            raise DataError(f"Expected the points of {pair[0]} -> {pair[1]} in {absent} but it is missing; restore it.")
        return PairAnnotation(src, trg)

    def paper_threshold(self, pair: PairAnnotation, sizes: tuple[tuple[int, int], tuple[int, int]]) -> float:
        """See :class:`PhotographPairs`."""
        return float(PAPER_SIDE)

    def _annotated(self, name: str, category: str, file: Path) -> ImageAnnotation:
        points = read_mat(file, "kps")
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise DataError(f"Expected kps of shape (K, 2) in {file} but got {points.shape}; restore the file.")
        bbox = read_mat(file, "bbox").reshape(-1)
        if bbox.shape != (4,) or not (bbox[2:] > bbox[:2]).all():
            raise DataError(f"Expected bbox as x0, y0, x1, y1 in {file} but got {bbox.tolist()}; restore the file.")
        return self._image_annotation(name, category, points, bbox, file)

    def _image_annotation(
        self, name: str, category: str, points: Points, bbox: Points, source: Path
    ) -> ImageAnnotation:
        visible = np.isfinite(points).all(axis=1)
        points = np.where(visible.reshape(-1, 1), points, 0.0)
        return ImageAnnotation(self._image_file(name), points, np.asarray(visible), bbox, category, name, source)

    def _image_file(self, name: str) -> Path:
        return self.root / "JPEGImages" / name


def _folder(root: Path) -> Path:
    for name in FOLDERS:
        if (root / name / "JPEGImages").is_dir():
            return root / name
    raise DataError(
        f"Expected JPEGImages in {root} or in one of {', '.join(FOLDERS[1:])} in it but found none; give in data.root the "
        "folder that holds JPEGImages and Annotations."
    )


def _list(folder: Path, root: Path, split: str) -> Path:
    names = [name for word in SPLITS[split] for name in (f"{word}_pairs_pf_pascal.csv", f"{word}_pairs.csv")]
    places = dict.fromkeys((folder, folder / "image_pairs", root, root / "image_pairs", folder.parent))
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    raise DataError(f"Expected one of {', '.join(names)} in {folder} or beside it but found none; download the list.")


def _read_list(
    file: Path, ignored: dict[str, str]
) -> list[tuple[int, tuple[str, str], str, tuple[Points, Points] | None]]:
    """Returns the number, pair, category, and points of both images if the list has them, of each row.

    Rows that ask for a mirrored pair are written down in ``ignored``.
    """
    header, rows = read_csv(file)
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"Expected the columns {', '.join(COLUMNS)} in {file} but {missing} are missing; restore the file."
        )
    listed = []
    for number, cells in rows.items():
        row = dict(zip(header, cells, strict=True))
        if row.get("flip", "0").strip() not in ("0", ""):
            ignored[f"row {number} of {file.name}"] = "asks for a mirrored pair"
            continue
        pair = _name(row["source_image"]), _name(row["target_image"])
        points = _points(row, file, number) if set(POINTS) <= set(header) else None
        listed.append((number, pair, _category(row["class"].strip(), file, number), points))
    return listed


def _name(cell: str) -> str:
    return Path(cell.strip().replace("\\", "/")).name


def _category(cell: str, file: Path, number: int) -> str:
    if cell in CATEGORIES:
        return cell
    if cell.isdigit() and 1 <= int(cell) <= len(CATEGORIES):
        return CATEGORIES[int(cell) - 1]
    raise DataError(
        f"Expected a class from 1 to {len(CATEGORIES)} in row {number} of {file} but got {cell!r}; restore it."
    )


def _points(row: dict[str, str], file: Path, number: int) -> tuple[Points, Points]:
    xa, ya, xb, yb = (numbers([c for c in row[name].split(";") if c.strip()], file, number) for name in POINTS)
    if not len(xa) == len(ya) == len(xb) == len(yb) > 0:
        raise DataError(
            f"Expected as many XA, YA, XB and YB in row {number} of {file} but got {len(xa)}, {len(ya)}, {len(xb)} and "
            f"{len(yb)}; restore the file."
        )
    return np.stack([xa, ya], 1), np.stack([xb, yb], 1)


def _around(points: Points) -> Points:
    return np.concatenate([points.min(0), points.max(0)])
