"""A folder of one's own photographs: one sub-folder a category, with or without points.

Points may stand in ``points.csv`` (image, part, x, y; a line a point) or in ``points.json`` (for each image a dictionary
with ``points``, from part to [x, y], and optionally ``bbox``, [x0, y0, x1, y1]), in pixels, with the centre of the top-left
pixel at (0.5, 0.5). Images are named relative to the folder, "cat/photograph 1.jpg". Without such a file points are
drawn in each source image, which serves distillation: a teacher answers them, and no truth is needed.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from distill.core.errors import ConfigError, DataError, nearest
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.pair_list import read_pair_list
from distill.data.pair_sampling import sample_pairs
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import (
    ImageConfig,
    PhotographPairs,
    check_split,
)
from distill.data.readers import numbers, read_csv, read_json

SPLITS = ("all", "train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MARGIN = 0.1  # of the side, where no point is drawn


@dataclass
class Annotated:
    """What a user says of one image: x, y by part, and x0, y0, x1, y1 of the object, in px."""

    points: dict[str, tuple[float, float]] = field(default_factory=dict)
    bbox: tuple[float, float, float, float] | None = None


class FolderPairs(PhotographPairs):
    """Pairs of photographs of one sub-folder; scored in the photographs' own pixels, if points are given.

    Args:
        root: the folder whose sub-folders hold the photographs.
        split: "all", or "train", "val" and "test", about 80, 10 and 10 % of each category, by the names of the files.
        n_pairs: how many pairs; without it all.
        seed: of the pairing, and of the points where none are given.
        size: side that images are brought to, px.
        pairs_per_image: how many targets a source image has.
        points: the CSV or JSON file of points; without it ``points.csv`` or ``points.json`` in the folder, if there.
        n_points: how many points are drawn in a source image without that file.
        threshold: what PCK's tolerance is a fraction of: "img", "bbox" or "kps_bbox".
        pairs: a CSV file with a list of pairs; without it they are drawn.
        resize: see :class:`ImageConfig`.
        convention: "canonical".
        on_error: see :class:`ImageConfig`.
        cache_mib: see :class:`ImageConfig`.

    Raises:
        ConfigError: for a setting that is none of the choices, or a tolerance from boxes without boxes.
        DataError: when there are no photographs, a file is malformed, or there are too few pairs.
    """

    name = "folder"
    has_paper_convention = False
    exif_orientation = True

    def __init__(
        self,
        root: str,
        split: str = "all",
        n_pairs: int | None = None,
        seed: int = 0,
        size: int = 128,
        pairs_per_image: int = 4,
        points: str | None = None,
        n_points: int = 10,
        threshold: Threshold = "img",
        pairs: str | None = None,
        resize: str = "squash",
        convention: str = "canonical",
        on_error: str = "raise",
        cache_mib: int = 2048,
    ) -> None:
        check_split(split, SPLITS)
        if threshold not in get_args(Threshold):
            raise ConfigError(
                f"Expected data.threshold to be known but got {threshold!r}; {nearest(threshold, get_args(Threshold))}."
            )
        if n_points < 1:
            raise ConfigError(f"Expected data.n_points of at least 1 but got {n_points}.")
        image_config = ImageConfig(size, resize, convention, on_error, cache_mib)
        self._configure(image_config)
        self.root, self.split, self.seed = Path(root), split, seed
        self.threshold, self.n_points = threshold, n_points
        everything = _photographs(self.root)
        self.source = _points_file(self.root, points)
        self.annotations = {} if self.source is None else _read_points(self.source, everything)
        if self.source is not None and threshold == "bbox" and not all(a.bbox for a in self.annotations.values()):
            raise ConfigError(
                f"Expected a bbox of every image in {self.source} for data.threshold=bbox; give them, or choose img or "
                "kps_bbox."
            )
        self.parts = sorted({part for annotation in self.annotations.values() for part in annotation.points})
        names = [n for n in of_split(everything, split) if self.source is None or self.annotations.get(n)]
        if pairs is not None:
            chosen = self._subsample(read_pair_list(Path(pairs), names), n_pairs, seed)
        else:
            categories = [name.partition("/")[0] for name in names]
            possible = sum(categories.count(c) * (categories.count(c) - 1) for c in set(categories))
            count = possible if n_pairs is None else n_pairs
            chosen = [(names[s], names[t]) for s, t in sample_pairs(categories, count, seed, pairs_per_image)]
        self._start(chosen, (self.root / name for name in names), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        src, trg = self.pairs[index]
        if self.source is None:
            return PairAnnotation(self._asked(src), self._unknown(trg))
        return PairAnnotation(self._annotated(src), self._annotated(trg))

    def _annotated(self, name: str) -> ImageAnnotation:
        known = self.annotations[name]
        points = np.zeros((len(self.parts), 2))
        visible = np.array([part in known.points for part in self.parts])
        for number in visible.nonzero()[0]:
            points[number] = known.points[self.parts[number]]
        height, width = self.read(self.root / name).original_size
        bbox = np.array(known.bbox or (0.0, 0.0, width, height))
        assert self.source is not None
        return ImageAnnotation(self.root / name, points, visible, bbox, name.partition("/")[0], name, self.source)

    def _asked(self, name: str) -> ImageAnnotation:
        """Returns a source image with points that depend on its name and the seed only."""
        height, width = self.read(self.root / name).original_size
        rng = np.random.default_rng([self.seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)])
        points = rng.uniform(MARGIN, 1 - MARGIN, (self.n_points, 2)) * (width, height)
        return self._whole(name, points, (height, width))

    def _unknown(self, name: str) -> ImageAnnotation:
        """Returns a target image, whose points are not known."""
        return self._whole(name, np.full((self.n_points, 2), np.nan), self.read(self.root / name).original_size)

    def _whole(self, name: str, points: np.ndarray, size: tuple[int, int]) -> ImageAnnotation:
        bbox = np.array([0.0, 0.0, size[1], size[0]])
        visible = np.ones(len(points), bool)
        return ImageAnnotation(self.root / name, points, visible, bbox, name.partition("/")[0], name, self.root)


def of_split(names: list[str], split: str) -> list[str]:
    """Returns the names that belong to a split, in their order.

    In each category the first tenth by a digest of the name is for testing and the next tenth for validation, at least
    two images each where the category has eight; smaller categories are for training.
    """
    if split == "all":
        return names
    chosen: set[str] = set()
    for category in {name.partition("/")[0] for name in names}:
        group = sorted((name for name in names if name.partition("/")[0] == category), key=_digest)
        share = max(len(group) // 10, 2) if len(group) >= 8 else 0
        parts = {"test": group[:share], "val": group[share : 2 * share], "train": group[2 * share :]}
        chosen.update(parts[split])
    return [name for name in names if name in chosen]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _photographs(root: Path) -> list[str]:
    files = sorted(file for file in root.glob("*/*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(
            f"Expected a sub-folder for each category with photographs ({', '.join(SUFFIXES)}) in {root} but found none; "
            "give it in data.root."
        )
    return [file.relative_to(root).as_posix() for file in files]


def _points_file(root: Path, points: str | None) -> Path | None:
    if points is not None:
        return Path(points)
    return next((root / name for name in ("points.csv", "points.json") if (root / name).is_file()), None)


def _read_points(file: Path, known: list[str]) -> dict[str, Annotated]:
    annotations = read_json(file, _parse, "points by image") if file.suffix == ".json" else _read_csv(file)
    unknown = sorted(annotations.keys() - set(known))
    if unknown:
        raise DataError(
            f"Expected images of the folder in {file} but there is no {unknown[0]}; name them relative to the folder."
        )
    return annotations


def _parse(content: dict[str, Any]) -> dict[str, Annotated]:
    found = {}
    for name, entry in content.items():
        points = {part: (float(x), float(y)) for part, (x, y) in entry["points"].items()}
        box = entry.get("bbox")
        if box is not None:
            x0, y0, x1, y1 = (float(value) for value in box)
            box = x0, y0, x1, y1
            if not (x1 > x0 and y1 > y0):
                raise ValueError(f"the bbox of {name} is empty")
        if not all(np.isfinite(point).all() for point in points.values()):
            raise ValueError(f"the points of {name} are not all finite")
        found[name] = Annotated(points, box)
    return found


def _read_csv(file: Path) -> dict[str, Annotated]:
    header, rows = read_csv(file)
    if header != ["image", "part", "x", "y"]:
        raise DataError(f"Expected the columns image, part, x, y in {file} but got {', '.join(header)}; rename them.")
    found: dict[str, Annotated] = {}
    for number, (image, part, *xy) in enumerate(rows, start=2):
        x, y = numbers(xy, file, number).tolist()
        found.setdefault(image, Annotated()).points[part] = x, y
    return found
