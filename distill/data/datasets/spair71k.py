"""SPair-71k (Min et al., 2019): 70,958 pairs of photographs in 18 categories, with what varies between them.

Files of the layout: ``Layout/large/{trn,val,test}.txt`` (a line a pair, ``number-source-target:category``),
``PairAnnotation/{trn,val,test}/<line>.json`` (the common points, boxes and flags), ``JPEGImages/<category>/*.jpg``, and
``ImageAnnotation/<category>/*.json`` (all points of a photograph), which may be absent. Where the pairs were unpacked
on a file system without colons, the colon in their names may be an underscore. Coordinates are taken as they stand.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np

from distill.core.errors import DataError
from distill.data import symmetry
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.image_config import ImageConfig, ImageOptions
from distill.data.json_values import numbers_in, object_in, shown
from distill.data.pairs import Threshold
from distill.data.photograph_pairs import (
    PAPER_SIDE,
    PhotographPairs,
    check_split,
    choose_categories,
    record,
)
from distill.data.readers import own_name, read_json, read_text

SPLITS = {"train": "trn", "val": "val", "test": "test"}
N_POINTS = 30  # the most that a category has
FLAGS = ("viewpoint_variation", "scale_variation", "truncation", "occlusion")
LARGEST_FLAG = 3  # 2 for the first two


class SPairPairs(PhotographPairs):
    """The benchmark's own pairs; points are scored in the photographs' own pixels.

    Args:
        root: the folder with ``Layout``, ``PairAnnotation`` and ``JPEGImages``.
        split: "train", "val" or "test".
        n_pairs: how many pairs, drawn by the seed; without it all, in the benchmark's order.
        seed: of the draw.
        categories: which of them; all without it.
        image_options: size, resize, convention, on_error and cache_mib, see :class:`ImageConfig`. The tolerance of the released
            code, which convention "paper" follows, is that of the *source* box.

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when a file is missing or malformed, or there are fewer pairs than asked for.
    """

    name = "spair71k"
    prefix: ClassVar[str] = ""  # of the folders with annotations
    splits: ClassVar[Sequence[str]] = tuple(SPLITS)
    threshold: Threshold = "bbox"
    symmetric_groups = symmetry.SPAIR71K

    def __init__(
        self,
        root: str,
        split: str = "test",
        n_pairs: int | None = None,
        seed: int = 0,
        categories: Sequence[str] | None = None,
        **image_options: Unpack[ImageOptions],
    ) -> None:
        check_split(split, self.splits)
        image_config = ImageConfig.of(image_options)
        self._configure(image_config)
        self.root, self.split = Path(root), split
        names = _read_names(self.root / "Layout" / "large" / f"{SPLITS[split]}.txt", self.ignored)
        chosen = choose_categories(categories, split, sorted({pair[0].partition("/")[0] for pair in names}))
        names = {pair: line for pair, line in names.items() if pair[0].partition("/")[0] in chosen}
        names = self._annotated_lines(names)
        self._lines = names
        self._all_points: dict[Path, dict[int, tuple[float, float]]] = {}
        pairs = self._subsample(list(names), n_pairs, seed)
        self._start(pairs, (self._image_file(name) for pair in pairs for name in pair), image_config)

    def pair_annotation(self, index: int) -> PairAnnotation:
        """See :class:`PhotographPairs`."""
        pair = self.pairs[index]
        file = self._pair_file(self._lines[pair])

        def parse(content: Any) -> PairAnnotation:
            """Returns the annotation that the JSON object ``content`` holds."""
            content = object_in(content, "the file")
            ids = [int(point) for point in content["kps_ids"]]
            if not set(ids) <= set(range(N_POINTS)) or len(set(ids)) < len(ids):
                raise ValueError(f"kps_ids {ids} are not all in 0 to {N_POINTS - 1}, or one comes twice")
            _check_names(content, pair)
            src, trg = (
                self._image_annotation(content, side, ids, name, file) for side, name in zip(SIDES, pair, strict=True)
            )
            viewpoint, scale, truncation, occlusion = (_flag(content, flag) for flag in FLAGS)
            return PairAnnotation(src, trg, (viewpoint, scale, truncation, occlusion))

        return read_json(file, parse, "the points, boxes and flags of a pair")

    def image_annotations(self, broken: dict[str, str] | None = None) -> Iterator[ImageAnnotation]:
        """See :class:`PhotographPairs`; with the points of all pairs, each of which has those alone that both of its images show."""
        broken = {} if broken is None else broken
        found: dict[Path, ImageAnnotation] = {}
        for side in self.sides(broken):
            known = found.setdefault(side.path, side)
            _add(known, {int(number): side.points[number] for number in side.visible.nonzero()[0]})
        for known in found.values():
            _add(known, record(broken, known.name, self._others, known.name.removesuffix(".jpg")) or {})
        yield from found.values()

    def _annotated_lines(self, lines: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Returns those lines of the layout that are annotated, here all of them."""
        return lines

    def _pair_file(self, line: str) -> Path:
        folder = self.root / f"{self.prefix}PairAnnotation" / SPLITS[self.split]
        without_colon = folder / f"{line.replace(':', '_')}.json"
        return without_colon if without_colon.is_file() else folder / f"{line}.json"

    def paper_threshold(self, pair: PairAnnotation, sizes: tuple[tuple[int, int], tuple[int, int]]) -> float:
        """See :class:`PhotographPairs`."""
        height, width = sizes[0]
        sides = (pair.src.bbox[2:] - pair.src.bbox[:2]) * PAPER_SIDE / (width, height)
        return float(sides.max())

    def _image_annotation(
        self, content: dict[str, Any], side: str, ids: list[int], name: str, file: Path
    ) -> ImageAnnotation:
        points, visible = np.zeros((N_POINTS, 2)), np.zeros(N_POINTS, bool)
        if side == "trg":  # what else is annotated there may be confused with what is asked for
            for number, point in self._others(name).items():
                points[number], visible[number] = point, True
        given = content[f"{side}_kps"]
        if len(given) != len(ids):
            raise ValueError(f"{side}_kps holds {len(given)} points where kps_ids names {len(ids)}")
        for number, point in zip(ids, given, strict=True):
            points[number] = numbers_in(point, 2, f"the point {number} of {side}_kps", "x, y in px")
        visible[ids] = True
        bbox = np.array(numbers_in(content[f"{side}_bndbox"], 4, f"{side}_bndbox", "x0, y0, x1, y1 in px"))
        if not (bbox[2:] > bbox[:2]).all():
            raise ValueError(f"{side}_bndbox {bbox.tolist()} has no area; it is x0, y0, x1, y1 in px")
        return ImageAnnotation(
            self._image_file(name), points, visible, bbox, name.partition("/")[0], f"{name}.jpg", file
        )

    def _others(self, name: str) -> dict[int, tuple[float, float]]:
        """Returns all points that are annotated in a photograph, as far as ``ImageAnnotation`` says."""
        file = self.root / f"{self.prefix}ImageAnnotation" / f"{name}.json"
        if file not in self._all_points:
            self._all_points[file] = read_json(file, _slots, "30 points or nulls under kps") if file.is_file() else {}
        return self._all_points[file]

    def _image_file(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"


SIDES = ("src", "trg")


def _add(known: ImageAnnotation, points: Mapping[int, Any]) -> None:
    """Adds to an annotation those of ``points``, x, y by number, that it lacks."""
    for number, point in points.items():
        if not known.visible[number]:
            known.points[number], known.visible[number] = point, True


def _check_names(content: dict[str, Any], pair: tuple[str, str]) -> None:
    """Raises a :class:`ValueError` when an annotation says that it is one of other photographs than the layout's line."""
    for side, name in zip(SIDES, pair, strict=True):
        category, _, file = name.partition("/")
        for key, wanted in (("category", category), (f"{side}_imname", f"{file}.jpg")):
            if content.get(key, wanted) != wanted:
                raise ValueError(f"{key} is {shown(content[key])} where the name of the pair says {wanted!r}")


def _flag(content: dict[str, Any], name: str) -> int:
    value = content[name]
    if isinstance(value, bool) or value not in range(LARGEST_FLAG + 1):
        raise ValueError(f"{name} is {shown(value)} where a whole number from 0 to {LARGEST_FLAG} is expected")
    return int(value)


def _slots(content: Any) -> dict[int, tuple[float, float]]:
    kps = object_in(object_in(content, "the file")["kps"], "kps")
    slots = {int(number): point for number, point in kps.items() if point is not None}
    if not set(slots) <= set(range(N_POINTS)):
        raise ValueError(f"kps {sorted(slots)} are not all in 0 to {N_POINTS - 1}")
    each = {number: numbers_in(point, 2, f"the point {number} of kps", "x, y in px") for number, point in slots.items()}
    return {number: (x, y) for number, (x, y) in each.items()}


def _read_names(file: Path, ignored: dict[str, str]) -> dict[tuple[str, str], str]:
    """Returns the lines of a layout by "category/source", "category/target"; repeated pairs go to ``ignored``."""
    hint = "give in data.root the folder that holds Layout, PairAnnotation and JPEGImages"
    names: dict[tuple[str, str], str] = {}
    for line in read_text(file, hint).split():
        pair, _, category = line.partition(":")
        parts = pair.split("-")
        if len(parts) != 3 or not category:
            raise DataError(
                f"Expected lines number-source-target:category in {file} but got {line!r}; restore the file."
            )
        for name in (*parts, category):
            own_name(name, file)
        pair_name = f"{category}/{parts[1]}", f"{category}/{parts[2]}"
        if pair_name in names:
            ignored[f"{line} of {file.name}"] = f"repeats the pair {pair_name[0]} -> {pair_name[1]}"
        else:
            names[pair_name] = line
    return names
