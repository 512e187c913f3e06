"""SOCO (Dünkel et al., "Benchmarking Semantic Object Correspondence in Vision Foundation Models", arXiv 2605.31597, 2026).

100 categories of 40 images; 20,000 pairs within categories and 20,000 across related ones. The layout is that of the
authors' loader (github.com/GenIntel/SOCO, ``docs/dataset_structure.md`` and ``soco/data.py``): ``Images/<category>/*.JPEG``,
``PairAnnotations/{intra,cross}/<group>/*.json`` and ``PairAnnotations/trainsplits/{train,test}/<category>/*.json``. This reader
follows that code and has been tested on a miniature of the layout only, not on the published files.

What is asked for are the points of ``semantic_overlap``, the same part of the object on the same side (SOC, and Cross-SOC
across categories). The benchmark's second figure, for which any part of the same concept counts, is not computed. The authors
average over the points of a pair, the pairs of a group, and the groups: ``pck_category_mean``, per image. They count a distance
below the tolerance where here it may be equal, pad images to squares, and round points to whole pixels; these things are
not repeated here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from distill.core.errors import DataError
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.json_values import numbers_in, object_in, objects_in
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import PhotographPairs, check_split, choose_categories
from distill.data.readers import read_json

SPLITS = {"intra": "intra", "cross": "cross", "train": "trainsplits/train", "test": "trainsplits/test"}


class SOCOPairs(PhotographPairs):
    """The benchmark's own pairs; points are scored in the images' own pixels.

    Args:
        root: the folder with ``Images`` and ``PairAnnotations``.
        split: "intra" for pairs within categories, "cross" for pairs across them, "train" or "test" for the two halves of the former.
        n_pairs: how many pairs, drawn by the seed; without it all, by group and name.
        seed: of the draw.
        categories: which of the groups of pairs; all without it.
        image_options: size, resize, convention, on_error and cache_mib, see :class:`ImageConfig`; the convention is "canonical".

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when a file is missing or malformed, or there are no pairs.
    """

    name = "soco"
    threshold: Threshold = "bbox"
    has_paper_convention = False
    numbered_by_pair = True

    def __init__(
        self,
        root: str,
        split: str = "intra",
        n_pairs: int | None = None,
        seed: int = 0,
        categories: Sequence[str] | None = None,
        **image_options: Unpack[ImageOptions],
    ) -> None:
        check_split(split, SPLITS)
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.root, self.split = Path(root), split
        self._folder = self.root / "PairAnnotations" / SPLITS[split]
        if not self._folder.is_dir():
            raise DataError(
                f"Expected pairs of SOCO in {self._folder} but there is no such folder; unpack Images.zip and PairAnnotations.zip of "
                "GenIntelLab/SOCO, and name the folder that holds Images and PairAnnotations in data.root."
            )
        groups = sorted(path.name for path in self._folder.iterdir() if path.is_dir())
        chosen = choose_categories(categories, split, groups)
        pairs = [(group, file.stem) for group in chosen for file in sorted((self._folder / group).glob("*.json"))]
        images = sorted((self.root / "Images").glob("*/*"))
        self._start(self._subsample(pairs, n_pairs, seed), images, image_config)

    def pair_name(self, index: int) -> str:
        """See :class:`PhotographPairs`; the group and the name of the pair's file."""
        return "/".join(self.pairs[index])

    def image_pairs(self) -> list[tuple[str, str]]:
        """See :class:`PhotographPairs`; they stand in the pairs' files."""
        found = map(self.pair_annotation, range(len(self)))
        return [(pair.src.name, pair.trg.name) for pair in found]

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`.

        Points are numbered within the pair: those of ``semantic_overlap`` in its order, then the target's others.
        """
        group, stem = self.pairs[index]
        file = self._folder / group / f"{stem}.json"

        def parse(content: Any) -> PairAnnotation:
            """Returns the annotation that the JSON object ``content`` holds."""
            content = object_in(content, "the file")
            common = [str(name) for name in content["semantic_overlap"]]
            src, trg = (_points(content, side) for side in ("src", "trg"))
            absent = [name for name in common if name not in src or name not in trg]
            if absent or len(set(common)) < len(common):
                raise ValueError(f"semantic_overlap {common} are not points of both images, each once")
            names = [*common, *(name for name in trg if name not in common)]
            given = {"src": {name: src[name] for name in common}, "trg": trg}
            first, second = (self._side(content, side, given[side], names, group, file) for side in ("src", "trg"))
            kinds = [annotation.path.parent.name for annotation in (first, second)]
            if self.split != "cross" and kinds[0] != kinds[1]:
                raise ValueError(
                    f"its images are of {kinds[0]} and {kinds[1]} where pairs of {self.split} are of one category"
                )
            return PairAnnotation(first, second)

        return read_json(file, parse, "the points and boxes of a pair of SOCO")

    def _side(
        self,
        content: dict[str, Any],
        side: str,
        given: dict[str, tuple[float, float]],
        names: list[str],
        group: str,
        file: Path,
    ) -> ImageAnnotation:
        points, visible = np.zeros((len(names), 2)), np.zeros(len(names), bool)
        for number, name in enumerate(names):
            if name in given:
                points[number], visible[number] = given[name], True
        category = _plain(content.get(f"{side}_category") or content["category"])
        image, size = _plain(content[f"{side}_image"]), content.get(f"{side}_imsize")
        path = self.root / "Images" / category / image
        told = None
        if size is not None:
            width, height = map(int, numbers_in(size, 2, f"{side}_imsize", "width, height in px"))
            told = height, width
        box = content.get(f"{side}_bndbox")
        if box is None and told is None:
            raise ValueError(f"{side}_bndbox and {side}_imsize are both missing")
        has_box = box is not None
        box = box if has_box else [0, 0, *reversed(told or ())]
        bbox = np.array(numbers_in(box, 4, f"{side}_bndbox", "x0, y0, x1, y1 in px"))
        if not (bbox[2:] > bbox[:2]).all():
            raise ValueError(f"{side}_bndbox {bbox.tolist()} is empty")
        name = f"{category}/{image}"
        return ImageAnnotation(path, points, visible, bbox, group, name, file, told, has_box=has_box)


def _points(content: dict[str, Any], side: str) -> dict[str, tuple[float, float]]:
    """Returns the places x, y of an image's points by their names."""
    found: dict[str, tuple[float, float]] = {}
    for point in objects_in(content[f"{side}_keypoints"], f"{side}_keypoints"):
        x, y = numbers_in(point["pos"], 2, f"the point {point['name']!r} of {side}_keypoints", "x, y in px")
        if str(point["name"]) in found:
            raise ValueError(f"the point {point['name']!r} comes twice in {side}_keypoints")
        found[str(point["name"])] = x, y
    return found


def _plain(name: object) -> str:
    """Returns a name of a file or folder that leads nowhere else."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise ValueError(f"{name!r} is no plain name of a file or folder")
    return name
