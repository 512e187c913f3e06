"""PF-WILLOW (Ham et al., CVPR 2016): ten folders of ten photographs, each with the same ten points.

Files of the layout: ``<folder>/*.png`` with a ``.mat`` of the same name beside each, holding ``pts_coord`` (2, 10). The
benchmark's pairs are all ordered pairs within a folder, 900 in all. Coordinates are taken as they stand.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from torch.utils.data import Dataset

from distill.data.pairs import AnnotatedImage, Threshold, make_pair, sample_pairs
from distill.data.photographs import check_size, read_photograph
from distill.errors import ConfigError, DataError
from distill.types import PairBatch

N_POINTS = 10


class WillowPairs(Dataset[PairBatch]):
    """Pairs of photographs of one folder, resized to squares; points are scored in the photographs' own pixels.

    There are no boxes: PCK's tolerance, and the box that baselines use, is the one around the target's ten points.

    Args:
        root: the folder whose sub-folders hold the photographs, usually ``PF-dataset``.
        split: "test"; there is no other.
        n_pairs: how many pairs; without it all that there are.
        seed: of the pairs' order, and so of which are left out.
        size: side that images are resized to, px; the ratio of the sides is not kept.

    Raises:
        ConfigError: for another split or a size below 16.
        DataError: when there are no annotated photographs, a file is malformed, or there are too few pairs.
    """

    name = "pf_willow"
    threshold: Threshold = "kps_bbox"

    def __init__(
        self, root: str, split: str = "test", n_pairs: int | None = None, seed: int = 0, size: int = 128
    ) -> None:
        if split != "test":
            raise ConfigError(
                f"Expected data.split to be 'test', all there is in PF-WILLOW, but got {split!r}; train on other data."
            )
        check_size(size)
        self.split, self.size = split, size
        self.notes = sorted(Path(root).glob("*/*.mat"))
        if not self.notes:
            raise DataError(
                f"Expected PF-WILLOW's folders of .png and .mat files in data.root but found none in {root}; give the "
                "folder named PF-dataset."
            )
        self.points = [_read_points(note) for note in self.notes]
        folders = [note.parent.name for note in self.notes]
        possible = sum(folders.count(folder) - 1 for folder in folders)
        self.pairs = sample_pairs(folders, possible if n_pairs is None else n_pairs, seed)
        self.image = lru_cache(maxsize=None)(self._image)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        source, target = self.pairs[index]
        return make_pair(self.image(source), self.image(target), self.threshold)

    def _image(self, number: int) -> AnnotatedImage:
        note, points = self.notes[number], self.points[number]
        return read_photograph(note.with_suffix(".png"), self.size).annotated(
            points=points,
            visible=np.ones(N_POINTS, bool),
            bbox=np.concatenate([points.min(0), points.max(0)]),
            category=note.parent.name,
            name=f"{note.parent.name}/{note.stem}",
        )


def _read_points(file: Path) -> NDArray[np.float64]:
    """Returns (10, 2) x, y in the photograph's pixels."""
    try:
        points = loadmat(file)["pts_coord"]
    except Exception as error:  # a truncated file raises whatever its reader stumbles on
        raise DataError(f"Expected pts_coord in {file} but it cannot be read ({error}); restore the file.") from error
    if points.shape != (2, N_POINTS) or not np.isfinite(points).all():
        raise DataError(
            f"Expected finite pts_coord of shape (2, {N_POINTS}) in {file} but got {points.shape}; restore the file."
        )
    return points.T.astype(np.float64)
