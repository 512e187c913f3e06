"""The annotation of a data set of photographs as keypoints by image, and as pairs, to be written in other formats."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import ConfigError, DataError
from distill.data.annotations import ImageAnnotation
from distill.data.broken_files import record
from distill.data.images import read_size
from distill.data.keypoints import ImageKeypoints, category_of
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


def check_numbers(benchmark: PhotographPairs) -> None:
    """Raises a :class:`DataError` when numbers of points do not say across pairs which part is meant."""
    if benchmark.numbered_by_pair:
        raise DataError(
            f"Expected points with one number a part in all pairs of {benchmark.name}, for keypoints by image, but it numbers those of "
            "each pair anew; choose the format spair71k, which is of pairs."
        )


def annotated_keypoints(benchmark: PhotographPairs) -> dict[str, ImageKeypoints]:
    """Returns what is annotated in each photograph of a data set, by its path relative to the folder.

    What a matcher set in a file of points is there with its confidences, and with the points that it was unsure of. Photographs
    that have no others belong to no split; they are there for the splits "all" and "train". What is broken is left out and
    added to the data set's ``skipped`` where it says so (``data.on_error=skip``).

    Raises:
        DataError: when nothing is annotated, its numbers mean something else in each pair, or it does not suit its photograph.
    """
    _check_truth(benchmark)
    check_numbers(benchmark)
    file: PointsFile | None = getattr(benchmark, "points_file", None)
    broken: dict[str, str] = {}
    annotations = list(_checked_annotations(benchmark, broken))
    if file is not None:
        found = _with_unsure(benchmark, file, {annotation.name for annotation in annotations}, broken)
    else:
        found = {name_of(benchmark, annotation): _keypoints(benchmark, annotation) for annotation in annotations}
    benchmark.leave_out(broken)
    return found


def annotated_pairs(benchmarks: Iterable[PhotographPairs]) -> tuple[dict[str, TreeImage], list[TreePair]]:
    """Returns the photographs of pairs, by "category/file", and the pairs with the points that both images show.

    Raises:
        DataError: see :func:`annotated_keypoints`.
    """
    images: dict[str, TreeImage] = {}
    pairs = []
    for benchmark in benchmarks:
        _check_truth(benchmark)
        broken: dict[str, str] = {}
        known = {annotation.path: annotation for annotation in _checked_annotations(benchmark, broken)}
        benchmark.leave_out(broken)
        for index in range(len(benchmark)):
            pair = benchmark.pair_annotation(index)
            if not {pair.src.path, pair.trg.path} <= known.keys():
                continue  # its photograph was left out above
            shared = pair.src.visible & pair.trg.visible & np.isfinite(pair.trg.points).all(1)
            sides = [points_by_number(benchmark.checked(side).points, shared) for side in (pair.src, pair.trg)]
            src, trg = (
                tree_image(images, benchmark, _of_category(known[side.path], side), annotated=True)
                for side in (pair.src, pair.trg)
            )
            of_src, of_trg = (tuple(points.values()) for points in sides)
            pairs.append(TreePair(src, trg, split_of(benchmark), tuple(sides[0]), of_src, of_trg))
    return images, pairs


def tree_image(
    images: dict[str, TreeImage], benchmark: PhotographPairs, annotation: ImageAnnotation, annotated: bool
) -> str:
    """Adds a photograph to ``images`` where it is not there, with its points if ``annotated``; returns its name.

    A box that is not known is the one around the annotated points with a margin, or without such the whole image.
    """
    name = f"{annotation.category}/{annotation.path.name}"
    if name in images and images[name].path != annotation.path:  # of a category of pairs, which has several folders
        name = f"{annotation.category}/{annotation.path.parent.name} {annotation.path.name}"
    if name not in images:
        known = _keypoints(benchmark, annotation)
        assert known.size is not None, "it was read"
        points = points_by_number(annotation.points, annotation.visible) if annotated and benchmark.has_truth else {}
        points = {} if benchmark.numbered_by_pair else points
        images[name] = TreeImage(annotation.path, known.size, known.box(), points)
    return name


def _of_category(known: ImageAnnotation, side: ImageAnnotation) -> ImageAnnotation:
    """Returns what is known of a photograph from all its pairs; of one in pairs of several categories, what this pair says."""
    return known if known.category == side.category else side


def _check_truth(benchmark: PhotographPairs) -> None:
    if not benchmark.has_truth:
        raise DataError(f"Expected annotated points in {root_of(benchmark)} but there are none; give data.points.")


def _checked_annotations(benchmark: PhotographPairs, broken: dict[str, str]) -> Iterator[ImageAnnotation]:
    """Yields what is known of each photograph that it suits; errors about the others go to ``broken``, by name."""
    for annotation in benchmark.image_annotations(broken):
        if record(broken, annotation.name, _checked, benchmark, annotation) is not None:
            yield annotation


def _checked(benchmark: PhotographPairs, annotation: ImageAnnotation) -> ImageAnnotation:
    """Returns ``annotation`` after comparing it with its photograph, which is decoded where broken ones are left out.

    A photograph with a sound header and damaged pixels may be copied as it is, or end a conversion that has to turn it.

    Raises:
        DataError: when the photograph cannot be read, or they do not belong together.
    """
    if benchmark.on_error == "skip":
        benchmark.image(annotation)
    return benchmark.checked(annotation)


def _keypoints(benchmark: PhotographPairs, annotation: ImageAnnotation) -> ImageKeypoints:
    """Returns the points of a photograph by the names of their parts; none where they are drawn, and not annotated."""
    names = part_names(benchmark)
    points = points_by_number(annotation.points, annotation.visible) if benchmark.has_truth else {}
    by_name = {names[number] if names else str(number): point for number, point in points.items()}
    size = photograph_size(benchmark, annotation)
    return ImageKeypoints(by_name, annotation.known_box, size, category=annotation.category)


def _with_unsure(
    benchmark: PhotographPairs, file: PointsFile, sound: set[str], broken: dict[str, str]
) -> dict[str, ImageKeypoints]:
    """Returns what ``file`` says of the photographs named in ``sound``, and of those with unsure points alone."""
    found: dict[str, ImageKeypoints] = {}
    with_others = benchmark.split in ("all", "train")
    for name, image in sorted(file.with_unsure.items()):
        if name in sound or (with_others and name not in file.images):
            annotation = record(broken, name, _unsure_annotation, benchmark, name, image, file)
            if annotation is not None:
                size = photograph_size(benchmark, annotation)
                found[name] = replace(image, size=size, category=annotation.category)
    return found


def _unsure_annotation(
    benchmark: PhotographPairs, name: str, image: ImageKeypoints, file: PointsFile
) -> ImageAnnotation:
    """Returns all points of a photograph, unsure ones too, which have to lie inside it, but not inside the object's box."""
    path, points = root_of(benchmark) / name, np.array(list(image.points.values()))
    height, width = read_size(path, benchmark.exif_orientation)
    bbox, visible = np.array([0.0, 0.0, width, height]), np.ones(len(points), bool)
    return _checked(
        benchmark,
        ImageAnnotation(path, points, visible, bbox, category_of(name), name, file.path, image.size, has_box=False),
    )


def split_of(benchmark: PhotographPairs) -> str:
    """Returns the split of SPair-71k's layout that the pairs of a data set belong to."""
    return benchmark.split if benchmark.split in ("val", "test") else "train"
