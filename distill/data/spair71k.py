"""SPair-71k (Min et al., 2019): 70,958 pairs of photographs in 18 categories, with what varies between them.

Files of the layout: ``Layout/large/{trn,val,test}.txt`` (a line a pair), ``PairAnnotation/{trn,val,test}/<line>.json``
(points, boxes and flags), ``JPEGImages/<category>/*.jpg``. Where the pairs were unpacked on a file system without
colons, the colon in their names may be an underscore. Coordinates are taken as they stand.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from distill.data.pairs import AnnotatedImage, Threshold, make_pair
from distill.data.photographs import check_size, read_photograph
from distill.errors import ConfigError, DataError, nearest
from distill.types import PairBatch

SPLITS = {"train": "trn", "val": "val", "test": "test"}
N_POINTS = 30  # the most that a category has
FLAGS = ("viewpoint_variation", "scale_variation", "truncation", "occlusion")


class SPairPairs(Dataset[PairBatch]):
    """The benchmark's own pairs, resized to squares; points are scored in the photographs' own pixels.

    Args:
        root: the folder with ``Layout``, ``PairAnnotation`` and ``JPEGImages``.
        split: "train", "val" or "test".
        n_pairs: how many pairs, drawn by the seed; without it all, in the benchmark's order.
        seed: of the draw.
        size: side that images are resized to, px; the ratio of the sides is not kept.

    Raises:
        ConfigError: for an unknown split or a size below 16.
        DataError: when a file is missing or malformed, or there are fewer pairs than asked for.
    """

    name = "spair71k"
    threshold: Threshold = "bbox"

    def __init__(
        self, root: str, split: str = "test", n_pairs: int | None = None, seed: int = 0, size: int = 128
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"Expected data.split to name a split but got {split!r}; {nearest(split, SPLITS)}.")
        check_size(size)
        self.root, self.split, self.size = Path(root), split, size
        self.pairs = _drawn(_read_names(self.root / "Layout" / "large" / f"{SPLITS[split]}.txt"), n_pairs, seed)
        self.photograph = lru_cache(maxsize=2048)(read_photograph)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        name = self.pairs[index]
        file = self._file_of(name)
        try:
            note = json.loads(file.read_text(encoding="utf-8"))
            ids = [int(point) for point in note["kps_ids"]]
            if not set(ids) <= set(range(N_POINTS)):
                raise ValueError(f"kps_ids {ids} are not all in 0 to {N_POINTS - 1}")
            src, trg = (self._annotated(note, side, ids) for side in ("src", "trg"))
            viewpoint, scale, truncation, occlusion = (int(note[flag]) for flag in FLAGS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"Expected the points, boxes and flags of a pair in {file} but it cannot be read "
                f"({type(error).__name__}: {error}); restore the file."
            ) from error
        return make_pair(src, trg, self.threshold, (viewpoint, scale, truncation, occlusion))

    def _annotated(self, note: dict[str, Any], side: str, ids: list[int]) -> AnnotatedImage:
        points, visible = np.zeros((N_POINTS, 2)), np.zeros(N_POINTS, bool)
        points[ids] = np.asarray(note[f"{side}_kps"], np.float64).reshape(len(ids), 2)
        visible[ids] = True
        bbox = np.asarray(note[f"{side}_bndbox"], np.float64).reshape(4)
        name = f"{note['category']}/{note[f'{side}_imname']}"
        photograph = self.photograph(self.root / "JPEGImages" / name, self.size)
        return photograph.annotated(points, visible, bbox, str(note["category"]), name)

    def _file_of(self, name: str) -> Path:
        folder = self.root / "PairAnnotation" / SPLITS[self.split]
        without_colon = folder / f"{name.replace(':', '_')}.json"
        return without_colon if without_colon.is_file() else folder / f"{name}.json"


def _read_names(file: Path) -> list[str]:
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected SPair-71k in data.root but {file} cannot be read ({error}); give the folder that holds Layout, "
            "PairAnnotation and JPEGImages."
        ) from error
    if not names:
        raise DataError(f"Expected lines in {file} but it is empty; restore the file.")
    return names


def _drawn(names: list[str], n_pairs: int | None, seed: int) -> list[str]:
    if n_pairs is None:
        return names
    if not 1 <= n_pairs <= len(names):
        raise DataError(f"Expected data.n_pairs between 1 and {len(names)}, the pairs of the split, but got {n_pairs}.")
    rows = np.random.default_rng([seed, len(names)]).permutation(len(names))[:n_pairs]
    return [names[row] for row in rows]
