"""CUB-200-2011 (Wah et al., 2011), and any folder in its layout.

Files of the layout, all with one line per image or part: ``images.txt`` (id, path), ``image_class_labels.txt`` (id,
class), ``train_test_split.txt`` (id, 1 for training), ``bounding_boxes.txt`` (id, x, y,
width, height), ``parts/part_locs.txt`` (id, part, x, y, visible), and the photographs under ``images/``.

Coordinates are taken as they stand. Whether they count pixels from 0 or from 1 is documented nowhere; boxes begin at 0.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from distill.data.pairs import AnnotatedImage, Threshold, make_pair, sample_pairs
from distill.data.photographs import check_size, read_photograph
from distill.errors import ConfigError, DataError, nearest
from distill.types import PairBatch

N_PARTS = 15
VAL_SHARE = 10  # every tenth training image, in an order that the seed decides
SPLITS = ("train", "val", "test")


class CUBPairs(Dataset[PairBatch]):
    """Pairs of photographs of one class, resized to squares; points are scored in the photographs' own pixels.

    The official test images are "test"; the official training images are "train" and, one in ten, "val".

    Args:
        root: the folder with ``images.txt``.
        split: "train", "val" or "test".
        n_pairs: how many pairs.
        seed: of the pairing and of the validation images.
        size: side that images are resized to, px; the ratio of the sides is not kept.
        pairs_per_image: how many targets a source image has.

    Raises:
        ConfigError: for an unknown split or a size below 16.
        DataError: when a file of the layout is missing or malformed, or there are too few pairs.
    """

    name = "cub"
    threshold: Threshold = "bbox"

    def __init__(
        self, root: str, split: str, n_pairs: int, seed: int = 0, size: int = 128, pairs_per_image: int = 4
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"Expected data.split to name a split but got {split!r}; {nearest(split, SPLITS)}.")
        check_size(size)
        self.root, self.split, self.seed, self.size = Path(root), split, seed, size
        self.annotations = Annotations(self.root)
        self.ids = [image for image in self._ids_of_split() if self.annotations.visible[image].any()]
        categories = [self.annotations.category[image] for image in self.ids]
        self.pairs = sample_pairs(categories, n_pairs, seed, pairs_per_image)
        self.image = lru_cache(maxsize=2048)(self._image)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        source, target = self.pairs[index]
        return make_pair(self.image(source), self.image(target), self.threshold)

    def _ids_of_split(self) -> list[int]:
        training = sorted(image for image, train in self.annotations.training.items() if train)
        if self.split == "test":
            return sorted(set(self.annotations.training) - set(training))
        order = np.random.default_rng([self.seed, len(training)]).permutation(len(training))
        chosen = {training[k] for k in order[: len(training) // VAL_SHARE]}
        return [image for image in training if (image in chosen) == (self.split == "val")]

    def _image(self, number: int) -> AnnotatedImage:
        image_id, notes = self.ids[number], self.annotations
        x, y, width, height = notes.box[image_id]
        photograph = read_photograph(self.root / "images" / notes.path[image_id], self.size)
        return photograph.annotated(
            points=notes.points[image_id],
            visible=notes.visible[image_id],
            bbox=np.array([x, y, x + width, y + height]),
            category=notes.category[image_id],
            name=notes.path[image_id],
        )


class Annotations:
    """The text files of the layout, by the image's id.

    Args:
        root: the folder with ``images.txt``.

    Raises:
        DataError: naming the file that is missing or the line that is malformed.
    """

    def __init__(self, root: Path) -> None:
        self.path = {int(row[0]): " ".join(row[1:]) for row in _rows(root / "images.txt", 2)}
        classes = {int(row[0]): int(row[1]) for row in _rows(root / "image_class_labels.txt", 2)}
        self.training = {int(row[0]): row[1] == "1" for row in _rows(root / "train_test_split.txt", 2)}
        self.box = {int(row[0]): tuple(map(float, row[1:5])) for row in _rows(root / "bounding_boxes.txt", 5)}
        self.points = {image: np.zeros((N_PARTS, 2)) for image in self.path}
        self.visible = {image: np.zeros(N_PARTS, bool) for image in self.path}
        for row in _rows(root / "parts" / "part_locs.txt", 5):
            image, part = int(row[0]), int(row[1]) - 1
            if image not in self.path or not 0 <= part < N_PARTS:
                raise DataError(
                    f"Expected images of images.txt and parts 1 to {N_PARTS} in {root / 'parts' / 'part_locs.txt'} but got "
                    f"image {image}, part {part + 1}; check that the files belong together."
                )
            self.points[image][part] = float(row[2]), float(row[3])
            self.visible[image][part] = row[4] == "1"
        for name, table in (
            ("image_class_labels.txt", classes),
            ("train_test_split.txt", self.training),
            ("bounding_boxes.txt", self.box),
        ):
            if table.keys() != self.path.keys():
                odd = min(table.keys() ^ self.path.keys())
                raise DataError(
                    f"Expected one line per image in {root / name} but image {odd} is not in both it and images.txt."
                )
        self.category = {
            image: f"{number:03d}.{self.path[image].partition('/')[0].partition('.')[2]}"
            for image, number in classes.items()
        }


def _rows(file: Path, width: int) -> Sequence[list[str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected the CUB-200-2011 layout in data.root but {file} cannot be read ({error}); give the folder that "
            "holds images.txt."
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        row = line.split()
        if not row:
            continue
        if len(row) < width or not all(_is_number(cell) for cell in (row if width > 2 else row[:1])):
            raise DataError(f"Expected {width} values in line {number} of {file} but got {line!r}; restore the file.")
        rows.append(row)
    if not rows:
        raise DataError(f"Expected lines in {file} but it is empty; restore the file.")
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
