"""Annotations of photographs and pairs, and the check that points, boxes and photographs belong together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError
from distill.data.pairs import NO_VARIATION

STRICT_SLACK = 1.0  # px that a user's box may reach out of its image, or a point out of its box
BENCHMARK_SLACK = 0.05  # of the longer side of the image, the same for published benchmarks


@dataclass(frozen=True)
class ImageAnnotation:
    """What is annotated in one photograph, in its own pixels.

    Attributes:
        path: of the image file.
        points: (K, 2) x, y; NaN where a point is asked for but the truth is not known.
        visible: (K,), which of them are annotated.
        bbox: (4,) x0, y0, x1, y1 of the object.
        category: what the object is.
        name: of the photograph, for people.
        source: the file that says so, for error messages.
        size: height, width of the photograph as far as that file says.
        box_has_size: whether boxes are written as x, y, width, height, as messages then do.
        box_source: the file that holds the boxes; without it ``source``.
        has_box: whether the object's box is known; otherwise ``bbox`` is the whole image.
    """

    path: Path
    points: NDArray[np.float64]
    visible: NDArray[np.bool_]
    bbox: NDArray[np.float64]
    category: str
    name: str
    source: Path
    size: tuple[int, int] | None = None
    box_has_size: bool = False
    box_source: Path | None = None
    has_box: bool = True

    def __post_init__(self) -> None:
        """Raises a :class:`DataError` for arrays of other shapes."""
        k = len(self.points)
        wanted: tuple[tuple[str, tuple[int, ...], str], ...] = (
            ("points", (k, 2), "(K, 2) of x, y"),
            ("visible", (k,), "(K,) of booleans, one for each point"),
            ("bbox", (4,), "(4,) of x0, y0, x1, y1"),
        )
        for name, shape, described in wanted:
            value = getattr(self, name)
            is_right = isinstance(value, np.ndarray) and value.shape == shape
            if not is_right or (value.dtype == bool) != (name == "visible"):
                got = f"{type(value).__name__} {np.shape(value)} of {getattr(value, 'dtype', 'objects')}"
                raise DataError(
                    f"Expected {name} of {self.path} as a NumPy array {described}, but its data set gives {got}; np.array makes one."
                )

    @property
    def known_box(self) -> tuple[float, float, float, float] | None:
        """x0, y0, x1, y1 of the object; None where it is not known."""
        x0, y0, x1, y1 = self.bbox.tolist()
        return (x0, y0, x1, y1) if self.has_box else None


@dataclass(frozen=True)
class PairAnnotation:
    """What is annotated of one pair: source, target, and SPair-71k's four flags."""

    src: ImageAnnotation
    trg: ImageAnnotation
    variation: tuple[int, int, int, int] = NO_VARIATION

    def __post_init__(self) -> None:
        """Raises a :class:`DataError` unless source and target have the same parts."""
        if len(self.src.points) != len(self.trg.points):
            raise DataError(
                f"Expected a row for each part in source and target, in one order, but {self.src.path} has "
                f"{len(self.src.points)} and {self.trg.path} {len(self.trg.points)}; what an image does not show has visible false."
            )


def check_annotation(annotation: ImageAnnotation, size: tuple[int, int], strict: bool) -> None:
    """Compares an annotation with its photograph.

    A box in another format (x, y, width, height) or of another image gives tolerances of PCK that mean nothing. Boxes of
    published benchmarks are not always exact: there 5 % of the image's side are tolerated, and a minority of the points
    may lie outside of the box.

    Args:
        annotation: of the photograph.
        size: height, width of the photograph, px.
        strict: for a user's own annotations: box and points may be off by one pixel.

    Raises:
        DataError: naming the file, unless the photograph has the size that the annotation says, all points lie inside
            it, the box lies inside it, and the points lie inside the box.
    """
    height, width = size
    if annotation.size is not None and annotation.size != size:
        raise DataError(
            f"Expected {annotation.path} of {annotation.size[1]} x {annotation.size[0]} px, as {annotation.source} says, "
            f"but it has {width} x {height} px as viewers show it; annotate the photograph as it is."
        )
    points = annotation.points[annotation.visible]
    outside = ((points < 0) | (points > (width, height))).any(1)
    if outside.any():
        x, y = points[outside][0]
        raise DataError(
            f"Expected all points of {annotation.path} inside its {width} x {height} px but {annotation.source} says "
            f"({x:g}, {y:g}); correct it, or leave such pairs out with data.on_error=skip."
        )
    slack = STRICT_SLACK if strict else max(STRICT_SLACK, BENCHMARK_SLACK * max(size))
    _check_box(annotation, points, size, slack, strict)


def _check_box(
    annotation: ImageAnnotation, points: NDArray[np.float64], size: tuple[int, int], slack: float, strict: bool
) -> None:
    height, width = size
    box = annotation.bbox
    low, high = box[:2], box[2:]
    written = np.concatenate([low, high - low]) if annotation.box_has_size else box
    said = f"{annotation.box_source or annotation.source} says [{', '.join(f'{value:g}' for value in written)}]"
    formats = ["x0, y0, x1, y1", "x, y, width, height"]
    right, other = reversed(formats) if annotation.box_has_size else formats
    format_ = f"a box is {right} in px"
    if not (low <= high).all() or not np.isfinite(box).all():
        raise DataError(f"Expected a box around the object of {annotation.path} but {said}; {format_}.")
    if (low < -slack).any() or (high > np.array([width, height]) + slack).any():
        raise DataError(
            f"Expected the box of {annotation.path} inside its {width} x {height} px but {said}; {format_}, correct it, "
            "or leave such pairs out with data.on_error=skip."
        )
    outside = ((points < low - slack) | (points > high + slack)).any(1)
    if (outside.any() and strict) or (len(points) > 1 and outside.mean() > 0.5):
        x, y = points[outside][0]
        raise DataError(
            f"Expected the points of {annotation.path} inside its box but {said} and the point ({x:g}, {y:g}); {format_}, "
            f"not {other}; correct it, or leave such pairs out with data.on_error=skip."
        )
