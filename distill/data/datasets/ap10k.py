"""AP-10K (Yu et al., 2021) as a benchmark of correspondence (Zhang et al., "Telling Left from Right", CVPR 2024).

Files of the layout, as that work's notebook makes it: ``JPEGImages/<family>/<species>/*.jpg``,
``ImageAnnotation/<family>/<species>/*.json`` (``keypoints``, 17 times x, y, visibility, ``bbox`` x, y, width, height, and
``width``, ``height``), and ``PairAnnotation/<list>/*:<group>.json`` (``src_json_path``, ``trg_json_path``), where the list
is ``trn``, ``val``, ``test``, ``val_cross_species``, ``test_cross_species``, ``val_cross_family`` or ``test_cross_family``. Where the
pairs were unpacked on a file system without colons, the colon may be an underscore. A point counts as visible when its
visibility is above 0. Coordinates are taken as they stand.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Unpack

import numpy as np

from distill.core.errors import ConfigError, DataError, nearest
from distill.data import symmetry
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.json_values import numbers_in, object_in
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import (
    PhotographPairs,
    check_split,
)
from distill.data.readers import read_json

SPLITS = {"train": "trn", "val": "val", "test": "test"}
ACROSS = {"none": "", "species": "_cross_species", "families": "_cross_family"}
N_POINTS = 17


class AP10KPairs(PhotographPairs):
    """The benchmark's own pairs of animals; points are scored in the photographs' own pixels.

    Args:
        root: the folder with ``JPEGImages``, ``ImageAnnotation`` and ``PairAnnotation``.
        split: "train", "val" or "test".
        n_pairs: how many pairs, drawn by the seed; without it all, in the order of their names.
        seed: of the draw.
        across: "none" for pairs within a species, "species" for pairs across the species of a family, "families" for
            pairs across families; training pairs are within a species.
        image_options: size, resize, convention (only "canonical"), on_error and cache_mib, see :class:`ImageConfig`.

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when a file is missing or malformed, or there are fewer pairs than asked for.
    """

    name = "ap10k"
    threshold: Threshold = "bbox"
    has_paper_convention = False
    symmetric_groups = symmetry.AP10K

    def __init__(
        self,
        root: str,
        split: str = "test",
        n_pairs: int | None = None,
        seed: int = 0,
        across: str = "none",
        **image_options: Unpack[ImageOptions],
    ) -> None:
        check_split(split, SPLITS)
        if across not in ACROSS or (split == "train" and across != "none"):
            choices = ["none"] if split == "train" else list(ACROSS)
            raise ConfigError(
                f"Expected data.across to suit split {split} but got {across!r}; {nearest(across, choices)}."
            )
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.root, self.split, self.across = Path(root), split, across
        folder = self.root / "PairAnnotation" / f"{SPLITS[split]}{ACROSS[across]}"
        files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
        if not files:
            raise DataError(
                f"Expected pairs of AP-10K in {folder} but found none; give in data.root the folder that holds "
                "PairAnnotation, see data download."
            )
        self._categories: dict[tuple[str, str], str] = {}
        for file in self._subsample(files, n_pairs, seed):
            try:
                pair = read_json(file, _pair, "src_json_path and trg_json_path")
                if pair in self._categories:
                    self.ignored[file.name] = f"repeats the pair {pair[0]} -> {pair[1]}"
                else:
                    self._categories[pair] = _group(file)
            except DataError as error:
                if image_config.on_error == "raise":
                    raise
                self.skipped[file.name] = str(error)
        pairs = list(self._categories)
        self._start(pairs, (self._image_file(name) for pair in pairs for name in pair), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        pair = self.pairs[index]
        src, trg = (self._image_annotation(name, self._categories[pair]) for name in pair)
        return PairAnnotation(src, trg)

    def _image_annotation(self, name: str, category: str) -> ImageAnnotation:
        file = self.root / "ImageAnnotation" / f"{name}.json"

        def parse(content: Any) -> ImageAnnotation:
            """Returns the annotation that the JSON object ``content`` holds."""
            content = object_in(content, "the file")
            meaning = f"x, y and visibility of {N_POINTS} parts"
            values = numbers_in(content["keypoints"], 3 * N_POINTS, "keypoints", meaning)
            points = np.array(values).reshape(N_POINTS, 3)
            x, y, width, height = numbers_in(content["bbox"], 4, "bbox", "x, y, width, height in px")
            if not (width > 0 and height > 0):
                raise ValueError(f"bbox {content['bbox']} has no area; it is x, y, width, height in px")
            bbox, path = np.array([x, y, x + width, y + height]), self._image_file(name)
            return ImageAnnotation(
                path, points[:, :2], points[:, 2] > 0, bbox, category, f"{name}.jpg", file, box_has_size=True
            )

        return read_json(file, parse, f"{N_POINTS} keypoints and a bbox")

    def _image_file(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"


def _pair(content: Any) -> tuple[str, str]:
    found = object_in(content, "the file")
    return _name(found["src_json_path"]), _name(found["trg_json_path"])


def _name(path: Any) -> str:
    """Returns "family/species/number" of "anything/ImageAnnotation/family/species/number.json"."""
    parts = PurePosixPath(str(path).replace("\\", "/")).with_suffix("").parts
    if "ImageAnnotation" not in parts[:-1] or ".." in parts:
        raise ValueError(f"the path {path!r} names no file below ImageAnnotation")
    return "/".join(parts[parts.index("ImageAnnotation") + 1 :])


def _group(file: Path) -> str:
    """Returns the species, the family, or "all": what follows the colon, or the underscore that replaces it."""
    numbers, colon, group = file.stem.partition(":")
    return group if colon else numbers.partition("_")[2]
