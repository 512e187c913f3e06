"""A folder of the user's photographs: one sub-folder for each category, or all of one category, with or without points.

Points may be given in ``points.csv`` (image, part, x, y; one line for each point) or in ``points.json`` (for each image
an object with ``points``, from part to [x, y], and optionally ``bbox``, [x0, y0, x1, y1]), in pixels, with the centre of
the top-left pixel at (0.5, 0.5), or in COCO's keypoint format (any JSON file with ``images``, ``annotations`` and
``categories``; see :mod:`distill.data.coco` for its pixel convention). Images are named relative to the folder,
"cat/photograph 1.jpg", or "photograph 1.jpg" where there are no sub-folders with photographs. Coordinates
belong to the image as viewers show it, its EXIF orientation applied. Without such a
file points are drawn in each source image, which is enough for distillation: a teacher answers them.

Image files lie directly in the sub-folders, or without such in the folder itself, where all are of one category.
Hidden files and folders (their name starts with a dot) are left out; all
other files that are not used are listed in ``ignored``.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Unpack, get_args

import numpy as np

from distill.core.errors import ConfigError, DataError, nearest
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.images import SUFFIXES, is_text, read_size, readable_suffixes, shown_name
from distill.data.keypoints import category_of
from distill.data.pair_list import read_pair_list
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import EmptySplit, PhotographPairs, check_split
from distill.data.points_file import PointsFile, find_points_file, read_points_file
from distill.data.symmetry import named_groups

SPLITS = ("all", "train", "val", "test")
MARGIN = 0.1  # of the side, where no point is drawn


class FolderPairs(PhotographPairs):
    """Pairs of photographs of one category; scored in the photographs' own pixels, if points are given.

    Args:
        root: the folder whose sub-folders hold the photographs, or that holds those of a single category itself.
        split: "all", or "train", "val" and "test"; see :func:`of_split`.
        n_pairs: how many pairs; without it all, at most 100,000.
        seed: of the pairing, and of the points where none are given.
        pairs_per_image: how many targets a source image has.
        points: a file of points, CSV, JSON or COCO; without it ``points.csv`` or ``points.json`` in the folder, if there.
        n_points: how many points are drawn in a source image without that file.
        threshold: what PCK's tolerance is a fraction of: "img", "bbox" or "kps_bbox".
        pairs: a CSV file with a list of pairs; without it they are drawn.
        by_person: whether points that a matcher set are left out of the file of points.
        image_options: size, resize, convention (only "canonical"), on_error and cache_mib, see :class:`ImageConfig`.

    Raises:
        ConfigError: for a setting that is none of the choices, or a tolerance from boxes without boxes.
        DataError: when there are no photographs, a file is malformed, or no two photographs can be paired.
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
        pairs_per_image: int = 4,
        points: str | None = None,
        n_points: int = 10,
        threshold: Threshold = "img",
        pairs: str | None = None,
        by_person: bool = False,
        **image_options: Unpack[ImageOptions],
    ) -> None:
        check_split(split, SPLITS)
        if threshold not in get_args(Threshold):
            raise ConfigError(
                f"Expected data.threshold to be known but got {threshold!r}; {nearest(threshold, get_args(Threshold))}."
            )
        if n_points < 1:
            raise ConfigError(f"Expected data.n_points of at least 1 but got {n_points}.")
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.root, self.split, self.seed = Path(root).expanduser(), split, seed
        self.threshold, self.n_points = threshold, n_points
        everything, self.ignored = find_photographs(self.root)
        self.mask_folder = None if "/" in everything[0] else ""
        self.usable = self._annotate(everything, points, by_person)
        self.names = of_split(self.usable, split) or self._of_small_folder(self.usable)
        if pairs is not None:
            self.ignored.pop(Path(pairs).name, None)
            chosen = self._subsample(read_pair_list(Path(pairs), self.names), n_pairs, seed)
        else:
            chosen = self._draw(n_pairs, pairs_per_image)
        self._start(chosen, (self.root / name for name in self.names), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        src, trg = self.pairs[index]
        if self.points_file is None:
            return PairAnnotation(self.image_annotation(src), self._unknown(trg))
        return PairAnnotation(self.image_annotation(src), self.image_annotation(trg))

    def image_annotation(self, name: str) -> ImageAnnotation:
        """See :class:`PhotographPairs`; without a file of points they depend on the name and the seed only."""
        if self.points_file is not None:
            return self._annotated(name, self.points_file)
        height, width = read_size(self.root / name, self.exif_orientation)
        rng = np.random.default_rng([self.seed, int(_digest(name)[:8], 16)])
        points = rng.uniform(MARGIN, 1 - MARGIN, (self.n_points, 2)) * (width, height)
        return self._whole(name, points, (height, width))

    def split_sizes(self) -> dict[str, int]:
        """Returns how many photographs the splits for training, validation and testing have."""
        return {split: len(of_split(self.usable, split)) for split in SPLITS[1:]}

    def _annotate(self, everything: list[str], points: str | None, by_person: bool) -> list[str]:
        """Reads the file of points, if there is one, and returns the photographs that can be used, of all splits."""
        file = find_points_file(self.root, points)
        self.points_file = None if file is None else read_points_file(file, everything, by_person, self.root)
        self.has_truth, self.parts = self.points_file is not None, []
        self.symmetric_groups: Mapping[str, Sequence[Sequence[int]]] = {}
        if self.points_file is None:
            return everything
        annotated, self.parts, self.strict = (
            self.points_file.images,
            self.points_file.parts,
            self.points_file.exact_boxes,
        )
        self.symmetric_groups = {"": named_groups(self.parts)}
        self._check_tolerances(self.points_file)
        if self.points_file.path.parent == self.root:
            self.ignored.pop(self.points_file.path.name, None)
        without = f"{self.points_file.path.name} has no points of it"
        self.ignored |= {name: without for name in everything if name not in annotated}
        return [name for name in everything if name in annotated]

    def _check_tolerances(self, file: PointsFile) -> None:
        """Raises where an image has no box that PCK's tolerance could be a fraction of: no point would ever be right there."""
        for name, image in file.images.items():
            if self.threshold == "bbox" and not image.bbox:
                raise ConfigError(
                    f"Expected a bbox of every image in {file.path} for data.threshold=bbox but {name} has none; give them, or choose "
                    "img or kps_bbox."
                )
            if self.threshold == "kps_bbox" and len(set(image.points.values())) < 2:
                raise ConfigError(
                    f"Expected two points at different places in every image of {file.path} for data.threshold=kps_bbox but {name} has "
                    "none; annotate more points, or choose data.threshold=img."
                )

    def _of_small_folder(self, everything: list[str]) -> list[str]:
        """Returns what stands for an empty split: for validation the photographs of training, otherwise none."""
        largest = max(Counter(category_of(name) for name in everything).values(), default=0)
        if self.split != "val":
            raise EmptySplit(
                f"Expected {SHARED_FROM} photographs of one category in {self.root}, to set some aside for split "
                f"{self.split}, but the largest category has {largest}; add photographs, or leave this split out."
            )
        self.notes.append(
            f"validation uses the photographs of training: {VALIDATED_FROM} of one category are needed to set some aside, "
            f"the largest has {largest}"
        )
        return of_split(everything, "train")

    def _draw(self, n_pairs: int | None, pairs_per_image: int) -> list[tuple[str, str]]:
        categories = [category_of(name) for name in self.names or ()]
        alone = {category for category, count in Counter(categories).items() if count == 1}
        if len(alone) < len(set(categories)):
            self.ignored |= {
                name: f"is the only photograph of its category in split {self.split}, so no pair has it"
                for name, category in zip(self.names or (), categories, strict=True)
                if category in alone
            }
        return self._drawn(categories, n_pairs, self.seed, pairs_per_image)

    def _why_no_pairs(self) -> str:
        """See :class:`PhotographPairs`."""
        if self.points_file is None or not self.names:
            return super()._why_no_pairs()
        return (
            f"Expected two images of one category with points in {self.points_file.path} but {len(self.names)} of split "
            f"{self.split} have points there, each alone in its category; annotate another one of a category, or move the file out "
            "of the folder, which leaves all photographs without points."
        )

    def _annotated(self, name: str, file: PointsFile) -> ImageAnnotation:
        known = file.images[name]
        points = np.zeros((len(self.parts), 2))
        visible = np.array([part in known.points for part in self.parts])
        for number in visible.nonzero()[0]:
            points[number] = known.points[self.parts[number]]
        height, width = read_size(self.root / name, self.exif_orientation)
        bbox = np.array(known.bbox or (0.0, 0.0, width, height))
        has_size = not file.exact_boxes and known.bbox is not None
        path = self.root / name
        return ImageAnnotation(
            path,
            points,
            visible,
            bbox,
            category_of(name),
            name,
            file.path,
            known.size,
            has_size,
            has_box=known.bbox is not None,
        )

    def _unknown(self, name: str) -> ImageAnnotation:
        """Returns a target image, whose points are not known."""
        return self._whole(
            name, np.full((self.n_points, 2), np.nan), read_size(self.root / name, self.exif_orientation)
        )

    def _whole(self, name: str, points: np.ndarray, size: tuple[int, int]) -> ImageAnnotation:
        bbox = np.array([0.0, 0.0, size[1], size[0]])
        visible = np.ones(len(points), bool)
        path, category = self.root / name, category_of(name)
        return ImageAnnotation(path, points, visible, bbox, category, name, self.root, has_box=False)


VALIDATED_FROM = 4  # photographs that a category needs for two of them to be set aside for validation
SHARED_FROM = 8  # and for two more to be set aside for testing


def of_split(names: list[str], split: str) -> list[str]:
    """Returns the names that belong to a split, in their order.

    In each category of eight or more, by the order of a digest of the name, the first tenth is for testing and the next
    tenth for validation, at least two photographs each. Of a category of four to seven two are for validation and none
    for testing; smaller categories are for training.
    """
    if split == "all":
        return names
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[category_of(name)].append(name)
    chosen: set[str] = set()
    for group in groups.values():
        ordered = sorted(group, key=_digest)
        share = max(len(group) // 10, 2)
        n_test = share if len(group) >= SHARED_FROM else 0
        n_val = share if len(group) >= VALIDATED_FROM else 0
        parts = {"test": ordered[:n_test], "val": ordered[n_test : n_test + n_val], "train": ordered[n_test + n_val :]}
        chosen.update(parts[split])
    return [name for name in names if name in chosen]


def find_photographs(root: Path, setting: str = "data.root") -> tuple[list[str], dict[str, str]]:
    """Returns the names of photographs, and why other files are ignored, by name.

    The photographs are those in the sub-folders of ``root``; where there are none, those directly in it.

    Args:
        root: the folder.
        setting: that names it, for messages.

    Raises:
        DataError: when there is no photograph.
        PermissionError: when the folder may not be read; a sub-folder that may not be is ignored.
    """
    if not root.is_dir():
        found = f"{root} is a file" if root.exists() else f"there is none at {root}"
        raise DataError(f"Expected a folder of photographs in {setting} but {found}; correct {setting}.")
    names: list[tuple[str, ...]] = []
    direct: list[str] = []
    ignored: dict[str, str] = {}
    readable = readable_suffixes()
    for entry in _visible(root):
        if not os.path.isdir(entry.path):
            if _may_be_read(entry, entry.name, readable):
                direct.append(entry.name)
            else:
                ignored[shown_name(entry.name)] = _why_ignored(entry, entry.name)
            continue
        try:
            files = _visible(entry.path)
        except OSError as error:
            ignored[f"{shown_name(entry.name)}/"] = f"cannot be read ({error.strerror})"
            continue
        for file in files:
            name = f"{entry.name}/{file.name}"
            if is_text(name) and os.path.isdir(file.path):
                ignored[f"{name}/"] = "folders in a sub-folder are not read"
            elif _may_be_read(file, name, readable):
                names.append((entry.name, file.name))
            else:
                ignored[shown_name(name)] = _why_ignored(file, name)
    if names:
        ignored |= dict.fromkeys(direct, "lies beside the sub-folders, not in one of them")
    names = names or [(name,) for name in direct]
    if not names:
        found = (
            f"; ignored: {'; '.join(f'{name}: {why}' for name, why in list(ignored.items())[:3])}" if ignored else ""
        )
        raise DataError(
            f"Expected photographs ({', '.join(sorted(readable))}) in {root}, or a sub-folder of them for each category, but "
            f"found none; give it in {setting}{found}."
        )
    return ["/".join(name) for name in sorted(names)], dict(sorted(ignored.items()))


def _visible(folder: str | Path) -> Iterable[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _may_be_read(file: os.DirEntry[str], name: str, readable: Collection[str]) -> bool:
    """Returns whether a file may be a photograph by its name, relative to the folder; what is missing behind a link is named later."""
    return is_text(name) and Path(name).suffix.lower() in readable and not _is_special(file)


def _is_special(file: os.DirEntry[str]) -> bool:
    """Returns whether something is neither a file nor a link to nothing: reading a pipe would wait for ever."""
    return os.path.exists(file.path) and not os.path.isfile(file.path)


def _why_ignored(file: os.DirEntry[str], name: str) -> str:
    """Returns why a file that cannot be read as an image is left out."""
    if not is_text(name):
        return "its name is not UTF-8"
    if _is_special(file):
        return "no file"
    is_image = Path(name).suffix.lower() in SUFFIXES
    return "this image format cannot be read here; HEIC needs pillow-heif" if is_image else "no image"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
