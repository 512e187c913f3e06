"""The annotation of a data set of photographs as keypoints by image, and as pairs, to be written in other formats."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import ConfigError, DataError
from distill.data.annotations import ImageAnnotation
from distill.data.images import read_size
from distill.data.keypoints import ImageKeypoints
from distill.data.photograph_pairs import PhotographPairs
from distill.data.points_file import PointsFile
from distill.data.spair_tree import Point, TreeImage, TreePair


def check_photographs(benchmark: Any) -> PhotographPairs:
    """Returns ``benchmark``, or raises a :class:`ConfigError` when it does not read photographs from a folder."""
    if not isinstance(benchmark, PhotographPairs) or not hasattr(benchmark, "root"):
        raise ConfigError(
            f"Expected a data set of photographs in a folder but {getattr(benchmark, 'name', benchmark)} is none; choose "
            "data=folder or a benchmark."
        )
    return benchmark


def root_of(benchmark: PhotographPairs) -> Path:
    """Returns the folder that the names of :func:`name_of` are relative to."""
    return Path(benchmark.root)  # type: ignore[attr-defined]


def name_of(benchmark: PhotographPairs, annotation: ImageAnnotation) -> str:
    """Returns the path of a photograph's file relative to the folder of the data set, with slashes."""
    return annotation.path.relative_to(root_of(benchmark)).as_posix()


def part_names(benchmark: PhotographPairs) -> Sequence[str] | None:
    """Returns the names of the parts as far as the data set says; otherwise their numbers serve."""
    return getattr(benchmark, "parts", None) or None


def photograph_size(benchmark: PhotographPairs, annotation: ImageAnnotation) -> tuple[int, int]:
    """Returns height, width of a photograph, px."""
    return read_size(annotation.path, benchmark.exif_orientation)


def points_by_number(points: np.ndarray, chosen: np.ndarray) -> dict[int, Point]:
    """Returns x, y of the ``chosen`` (K,) bool of points (K, 2), by their number."""
    return {int(number): (float(points[number, 0]), float(points[number, 1])) for number in chosen.nonzero()[0]}


def annotated_keypoints(benchmark: PhotographPairs) -> dict[str, ImageKeypoints]:
    """Returns what is annotated in each photograph of a data set, by its path relative to the folder.

    What a matcher set in a file of points is there with its confidences, and with the points that it was unsure of.

    Raises:
        DataError: when nothing is annotated.
    """
    if not benchmark.has_truth:
        raise DataError(f"Expected annotated points in {root_of(benchmark)} but there are none; give data.points.")
    names, found = part_names(benchmark), {}
    for annotation in benchmark.image_annotations():
        points = points_by_number(annotation.points, annotation.visible)
        x0, y0, x1, y1 = annotation.bbox.tolist()
        found[name_of(benchmark, annotation)] = ImageKeypoints(
            {names[number] if names else str(number): point for number, point in points.items()},
            (x0, y0, x1, y1),
            photograph_size(benchmark, annotation),
            category=annotation.category,
        )
    file: PointsFile | None = getattr(benchmark, "points_file", None)
    if file is None:
        return found
    for name, image in found.items():
        given = file.images[name]
        image.points |= file.unsure.get(name, {})
        image.unsure = given.unsure & image.points.keys()
        image.confidence = {part: sure for part, sure in given.confidence.items() if part in image.points}
    return found


def annotated_pairs(benchmarks: Iterable[PhotographPairs]) -> tuple[dict[str, TreeImage], list[TreePair]]:
    """Returns the photographs of pairs, by "category/file", and the pairs with the points that both images show."""
    images: dict[str, TreeImage] = {}
    pairs = []
    for benchmark in benchmarks:
        for index in range(len(benchmark)):
            pair = benchmark.pair_annotation(index)
            shared = pair.src.visible & pair.trg.visible & np.isfinite(pair.trg.points).all(1)
            sides = [points_by_number(side.points, shared) for side in (pair.src, pair.trg)]
            src, trg = (tree_image(images, benchmark, side, annotated=True) for side in (pair.src, pair.trg))
            of_src, of_trg = (tuple(points.values()) for points in sides)
            pairs.append(TreePair(src, trg, split_of(benchmark), tuple(sides[0]), of_src, of_trg))
    return images, pairs


def tree_image(
    images: dict[str, TreeImage], benchmark: PhotographPairs, annotation: ImageAnnotation, annotated: bool
) -> str:
    """Adds a photograph to ``images`` where it is not there, with its points if ``annotated``; returns its name."""
    name = f"{annotation.category}/{annotation.path.name}"
    if name not in images:
        points = points_by_number(annotation.points, annotation.visible) if annotated and benchmark.has_truth else {}
        x0, y0, x1, y1 = annotation.bbox.tolist()
        images[name] = TreeImage(annotation.path, photograph_size(benchmark, annotation), (x0, y0, x1, y1), points)
    return name


def split_of(benchmark: PhotographPairs) -> str:
    """Returns the split of SPair-71k's layout that the pairs of a data set belong to."""
    return benchmark.split if benchmark.split in ("val", "test") else "train"
