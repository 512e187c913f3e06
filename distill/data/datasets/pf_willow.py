"""PF-WILLOW (Ham et al., CVPR 2016): ten folders of ten photographs, each with the same ten points.

Files of the layout: ``<folder>/*.png`` with a ``.mat`` of the same name beside each, holding ``pts_coord`` (2, 10). The
benchmark's pairs are all ordered pairs within a folder, 900 in all. A list of them, ``test_pairs_pf.csv`` or
``test_pairs.csv`` (imageA, imageB, XA1 to XA10, YA1 to YA10, and the same of B), is followed where there is one beside
the folders or above them; otherwise the pairs are made. Coordinates are taken as they stand.
"""

from pathlib import Path, PurePath
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ConfigError, DataError
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.pair_sampling import count_pairs, sample_pairs
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import (
    PAPER_SIDE,
    PhotographPairs,
)
from distill.data.readers import numbers, own_name, read_csv, read_mat

N_POINTS = 10
LISTS = ("test_pairs_pf.csv", "test_pairs.csv")


class PFWillowPairs(PhotographPairs):
    """Pairs of photographs of one folder; points are scored in the photographs' own pixels.

    There are no boxes: PCK's tolerance, and the box that baselines use, is the one around the target's ten points.

    Args:
        root: the folder whose sub-folders hold the photographs, usually ``PF-dataset``, or the one above it.
        split: "test"; there is no other.
        n_pairs: how many pairs, drawn by the seed; without it all that there are.
        seed: of the draw; without a list also of the order.
        image_options: size, resize, convention, on_error and cache_mib, see :class:`ImageConfig`. The released code, which
            convention "paper" follows, takes the tolerance from the *source* points and, by mistake, from the padding of -1
            behind them.

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when there are no annotated photographs, a file is malformed, or there are too few pairs.
    """

    name = "pf_willow"
    threshold: Threshold = "kps_bbox"

    def __init__(
        self,
        root: str,
        split: str = "test",
        n_pairs: int | None = None,
        seed: int = 0,
        **image_options: Unpack[ImageOptions],
    ) -> None:
        if split != "test":
            raise ConfigError(
                f"Expected data.split to be 'test', all there is in PF-WILLOW, but got {split!r}; train on other data."
            )
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.split, self.root = split, _folder(Path(root))
        self._listed: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._points: dict[str, NDArray[np.float64]] = {}
        file = next((f for f in _lists(self.root) if f.is_file()), None)
        pairs = self._made(n_pairs, seed) if file is None else self._subsample(self._read(file), n_pairs, seed)
        self.source = file
        if image_config.on_error == "raise" and file is None:
            for name in dict.fromkeys(name for pair in pairs for name in pair):
                self._points_of(name)
        self._start(pairs, (self._image_file(name) for pair in pairs for name in pair), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        pair = self.pairs[index]
        points = self._listed[pair] if self.source else np.stack([self._points_of(name) for name in pair])
        src, trg = (self._image_annotation(name, own) for name, own in zip(pair, points, strict=True))
        return PairAnnotation(src, trg)

    def paper_threshold(self, pair: PairAnnotation, sizes: tuple[tuple[int, int], tuple[int, int]]) -> float:
        """See :class:`PhotographPairs`."""
        height, width = sizes[0]
        padded = np.vstack([pair.src.points * PAPER_SIDE / (width, height), [[-1, -1]]])
        return float((padded.max(0) - padded.min(0)).max())

    def _image_annotation(self, name: str, points: NDArray[np.float64]) -> ImageAnnotation:
        path = self._image_file(name)
        return ImageAnnotation(
            path=path,
            points=points,
            visible=np.ones(N_POINTS, bool),
            bbox=np.concatenate([points.min(0), points.max(0)]),
            category=name.partition("/")[0],
            name=name,
            source=self.source or path.with_suffix(".mat"),
        )

    def _image_file(self, name: str) -> Path:
        return self.root / f"{name}.png"

    def _made(self, n_pairs: int | None, seed: int) -> list[tuple[str, str]]:
        names = self._visible("mat")
        without = set(self._visible("png")) - set(names)
        self.ignored |= {f"{name}.png": "has no points beside it" for name in sorted(without)}
        if not names:
            raise DataError(
                f"Expected PF-WILLOW's folders of .png and .mat files in data.root but found none in {self.root}; give "
                "the folder named PF-dataset."
            )
        folders = [name.partition("/")[0] for name in names]
        count = self._limited(n_pairs, count_pairs(folders))
        return [(names[s], names[t]) for s, t in sample_pairs(folders, count, seed)]

    def _visible(self, suffix: str) -> list[str]:
        """Returns "folder/photograph" of the files with a suffix, hidden ones left out, in the order of their names."""
        files = sorted(self.root.glob(f"*/*.{suffix}"))
        names = [(file.parent.name, file.stem) for file in files]
        return [f"{folder}/{stem}" for folder, stem in names if not folder.startswith(".") and not stem.startswith(".")]

    def _points_of(self, name: str) -> NDArray[np.float64]:
        """Returns (10, 2) x, y in the photograph's pixels."""
        if name not in self._points:
            self._points[name] = _read_points(self.root / f"{name}.mat")
        return self._points[name]

    def _read(self, file: Path) -> list[tuple[str, str]]:
        header, rows = read_csv(file)
        if len(header) != 2 + 4 * N_POINTS:
            raise DataError(
                f"Expected two images and {4 * N_POINTS} coordinates in each row of {file} but got {len(header)} columns; "
                "restore the file, or remove it and the pairs are made."
            )
        for number, row in rows.items():
            if not (PurePath(row[0].strip()).name and PurePath(row[1].strip()).name):
                raise DataError(f"Expected two images in row {number} of {file} but got {row[:2]}; restore the file.")
            pair = own_name(_name(row[0]), file), own_name(_name(row[1]), file)
            if pair in self._listed:
                self.ignored[f"row {number} of {file.name}"] = f"repeats the pair {pair[0]} -> {pair[1]}"
                continue
            self._listed[pair] = numbers(row[2:], file, number).reshape(2, 2, N_POINTS).transpose(0, 2, 1)
        return list(self._listed)


def _folder(root: Path) -> Path:
    return root / "PF-dataset" if (root / "PF-dataset").is_dir() else root


def _lists(folder: Path) -> list[Path]:
    return [place / name for place in (folder, folder.parent) for name in LISTS]


def _name(text: str) -> str:
    """Returns "folder/photograph" of "PF-dataset/folder/photograph.png"."""
    return str(Path(*Path(text.strip().replace("\\", "/")).parts[-2:]).with_suffix(""))


def _read_points(file: Path) -> NDArray[np.float64]:
    points = read_mat(file, "pts_coord")
    if points.shape != (2, N_POINTS) or not np.isfinite(points).all():
        raise DataError(
            f"Expected finite pts_coord of shape (2, {N_POINTS}) in {file} but got {points.shape}; restore the file."
        )
    return points.T
