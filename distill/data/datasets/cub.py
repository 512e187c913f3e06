"""CUB-200-2011 (Wah et al., 2011), and any folder in its layout.

Files of the layout, all with one line per image or part: ``images.txt`` (id, path), ``image_class_labels.txt`` (id,
class), ``train_test_split.txt`` (id, 1 for training), ``bounding_boxes.txt`` (id, x, y,
width, height), ``parts/part_locs.txt`` (id, part, x, y, visible), and the photographs under ``images/``.

There is no official list of pairs. By default pairs of one class are drawn by a seed, over all classes; ``data describe``
writes the list, which ``data.pairs`` reads again. Coordinates are taken as they stand. Whether they count pixels from 0
or from 1 is documented nowhere; boxes begin at 0.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Unpack

import numpy as np

from distill.core.errors import DataError
from distill.data import symmetry
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.pair_list import read_pair_list
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import (
    PAPER_SIDE,
    PhotographPairs,
    check_split,
)
from distill.data.readers import own_name, read_text

N_PARTS = 15
VAL_SHARE = 10  # every tenth training image, in an order that the seed decides
SPLITS = ("train", "val", "test")
PAPER_CLASSES = 3


class CUBPairs(PhotographPairs):
    """Pairs of photographs of one class; points are scored in the photographs' own pixels.

    The official test images are "test"; the official training images are "train" and, one in ten, "val".

    Args:
        root: the folder with ``images.txt``.
        split: "train", "val" or "test".
        n_pairs: how many pairs; without it all.
        seed: of the pairing and of the validation images.
        pairs_per_image: how many targets a source image has.
        pairs: "classes" for seeded pairs over all classes; "paper" for all pairs, each in one direction, of the first
            three classes, as in the teacher's released code; or a CSV file with a list. Without it "classes", or
            "paper" where the convention is.
        image_options: size, resize, convention, on_error and cache_mib, see :class:`ImageConfig`. The released code, which
            convention "paper" follows, scales both sides of the target's box like widths.

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when a file of the layout is missing or malformed, or there are too few pairs.
    """

    name = "cub"
    threshold: Threshold = "bbox"
    symmetric_groups = symmetry.CUB

    def __init__(
        self,
        root: str,
        split: str,
        n_pairs: int | None = None,
        seed: int = 0,
        pairs_per_image: int = 4,
        pairs: str | None = None,
        **image_options: Unpack[ImageOptions],
    ) -> None:
        check_split(split, SPLITS)
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.root, self.split, self.seed = Path(root), split, seed
        self.annotations = Annotations(self.root)
        of_split = self._ids_of_split()
        ids = [image for image in of_split if self.annotations.visible[image].any()]
        self.ignored = {self.annotations.path[i]: "no part of it is visible" for i in sorted(set(of_split) - set(ids))}
        self.ids = {self.annotations.path[image]: image for image in ids}
        self.names = list(self.ids)
        which = pairs or ("paper" if image_config.convention == "paper" else "classes")
        chosen = self._choose(which, n_pairs, seed, pairs_per_image)
        self._start(chosen, (self._image_file(name) for name in self.ids), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        src, trg = self.pairs[index]
        return PairAnnotation(self.image_annotation(src), self.image_annotation(trg))

    def paper_threshold(self, pair: PairAnnotation, sizes: tuple[tuple[int, int], tuple[int, int]]) -> float:
        """See :class:`PhotographPairs`."""
        _, width = sizes[1]
        return float((pair.trg.bbox[2:] - pair.trg.bbox[:2]).max() * PAPER_SIDE / width)

    def _choose(self, which: str, n_pairs: int | None, seed: int, pairs_per_image: int) -> list[tuple[str, str]]:
        names = list(self.ids)
        if which == "paper":
            first = sorted(set(self.annotations.number.values()))[:PAPER_CLASSES]
            groups = [[n for n in names if self.annotations.number[self.ids[n]] == number] for number in first]
            return self._subsample([pair for group in groups for pair in combinations(group, 2)], n_pairs, seed)
        if which != "classes":
            return self._subsample(read_pair_list(Path(which), names), n_pairs, seed)
        categories = [self.annotations.category[image] for image in self.ids.values()]
        return self._drawn(categories, n_pairs, seed, pairs_per_image)

    def _ids_of_split(self) -> list[int]:
        training = sorted(image for image, train in self.annotations.training.items() if train)
        if self.split == "test":
            return sorted(set(self.annotations.training) - set(training))
        order = np.random.default_rng([self.seed, len(training)]).permutation(len(training))
        chosen = {training[k] for k in order[: len(training) // VAL_SHARE]}
        return [image for image in training if (image in chosen) == (self.split == "val")]

    def image_annotation(self, name: str) -> ImageAnnotation:
        """See :class:`PhotographPairs`."""
        image, annotations = self.ids[name], self.annotations
        x, y, width, height = annotations.box[image]
        if not (width > 0 and height > 0):
            raise DataError(
                f"Expected a box with an area for image {image} in {self.root / 'bounding_boxes.txt'} but got {width:g} x "
                f"{height:g} px; boxes are x, y, width, height."
            )
        return ImageAnnotation(
            path=self._image_file(name),
            points=annotations.points[image],
            visible=annotations.visible[image],
            bbox=np.array([x, y, x + width, y + height]),
            category=annotations.category[image],
            name=name,
            source=self.root / "parts" / "part_locs.txt",
            box_has_size=True,
            box_source=self.root / "bounding_boxes.txt",
        )

    def _image_file(self, name: str) -> Path:
        return self.root / "images" / name


class Annotations:
    """The text files of the layout, by the image's id.

    Attributes:
        path: of the photograph under ``images/``.
        number: of its class.
        category: of its class, "001.Black_footed_Albatross".
        training: whether it is an official training image.
        box: x, y, width, height.
        points: (15, 2) x, y.
        visible: (15,) bool.

    Args:
        root: the folder with ``images.txt``.

    Raises:
        DataError: naming every file that is missing or malformed.
    """

    def __init__(self, root: Path) -> None:
        images, labels, split, boxes, parts = _tables(root)
        self.path = {int(row[0]): own_name(" ".join(row[1:]), root / FILES[0]) for row in images}
        self.number = {int(row[0]): int(row[1]) for row in labels}
        self.training = {int(row[0]): row[1] == "1" for row in split}
        self.box = {int(row[0]): tuple(map(float, row[1:5])) for row in boxes}
        self.points = {image: np.zeros((N_PARTS, 2)) for image in self.path}
        self.visible = {image: np.zeros(N_PARTS, bool) for image in self.path}
        seen: set[tuple[int, int]] = set()
        for row in parts:
            image, part = int(row[0]), int(row[1]) - 1
            if image not in self.path or not 0 <= part < N_PARTS:
                raise DataError(
                    f"Expected images of images.txt and parts 1 to {N_PARTS} in {root / 'parts' / 'part_locs.txt'} but got "
                    f"image {image}, part {part + 1}; check that the files belong together."
                )
            if (image, part) in seen:
                raise DataError(
                    f"Expected each part of an image once in {root / 'parts' / 'part_locs.txt'} but part {part + 1} of image "
                    f"{image} comes twice; remove one line."
                )
            seen.add((image, part))
            self.points[image][part] = float(row[2]), float(row[3])
            self.visible[image][part] = row[4] == "1"
        for name, ids in zip(FILES[1:4], (set(self.number), set(self.training), set(self.box)), strict=True):
            if ids != self.path.keys():
                odd = min(ids ^ self.path.keys())
                raise DataError(
                    f"Expected one line per image in {root / name} but image {odd} is not in both it and images.txt."
                )
        self.category = {
            image: f"{number:03d}.{self.path[image].partition('/')[0].partition('.')[2]}"
            for image, number in self.number.items()
        }


FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt")
WIDTHS = (2, 2, 2, 5, 5)
N_WHOLE = (1, 2, 2, 1, 2)  # how many of the first cells of a line are whole numbers


def _tables(root: Path) -> list[list[list[str]]]:
    tables, problems = [], []
    for name, width, n_whole in zip(FILES, WIDTHS, N_WHOLE, strict=True):
        try:
            rows = _rows(root / name, width, n_whole, free_text=name == "images.txt")
            if name != FILES[-1]:
                _check_ids(rows, root / name)
            tables.append(rows)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(" ".join(problems))
    return tables


def _check_ids(rows: list[list[str]], file: Path) -> None:
    """Raises a :class:`DataError` when two lines belong to one image."""
    repeated = [image for image, count in Counter(row[0] for row in rows).items() if count > 1]
    if repeated:
        raise DataError(
            f"Expected one line per image in {file} but image {repeated[0]} has several; remove the others."
        )


def _rows(file: Path, width: int, n_whole: int, free_text: bool) -> list[list[str]]:
    rows = []
    hint = "give in data.root the folder that holds images.txt"
    for number, line in enumerate(read_text(file, hint).splitlines(), start=1):
        row = line.split()
        if not row:
            continue
        whole, numbers = row[:n_whole], [] if free_text else row[n_whole:]
        if len(row) < width or not all(cell.isdecimal() and len(cell) < 19 for cell in whole) or not _finite(numbers):
            raise DataError(f"Expected {width} values in line {number} of {file} but got {line!r}; restore the file.")
        rows.append(row)
    return rows


def _finite(cells: Sequence[str]) -> bool:
    try:
        return all(np.isfinite(float(cell)) for cell in cells)
    except ValueError:
        return False
