"""What a file of keypoints says of the one object of an image, and finding images by the names that tools give them."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from distill.core.errors import ConfigError

NO_CATEGORY = "object"  # of an image that lies in no sub-folder, and whose file names none
MARGIN = 0.1  # of the longer side of the box around the points
UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio writes in front of the name of an uploaded file

Box = tuple[float, float, float, float]


@dataclass
class ImageKeypoints:
    """The one object of an image.

    Attributes:
        points: x, y by part, px with the centre of the top-left pixel at (0.5, 0.5).
        bbox: x0, y0, x1, y1 px of the object; None where it is not known.
        size: height, width, px.
        unsure: parts that a matcher set and was unsure of.
        category: name of the object's category.
        confidence: in [0, 1], of the points that a matcher set; a person set the others.
        hidden: parts that a person annotated as not visible.
    """

    points: dict[str, tuple[float, float]]
    bbox: Box | None = None
    size: tuple[int, int] | None = None
    unsure: frozenset[str] = field(default_factory=frozenset)
    category: str = NO_CATEGORY
    confidence: dict[str, float] = field(default_factory=dict)
    hidden: frozenset[str] = field(default_factory=frozenset)

    def visibility(self, part: str) -> int:
        """Returns COCO's visibility: 0 of a part without a point, 1 of an unsure or hidden one, 2 of others."""
        if part not in self.points:
            return 0
        return 1 if part in self.unsure | self.hidden else 2

    def box(self) -> Box:
        """Returns ``bbox``, or where it is not known the box around the points with a margin, inside the image."""
        assert self.size is not None, "an image that is written needs its size"
        height, width = self.size
        if self.bbox is not None or not self.points:
            return self.bbox or (0.0, 0.0, float(width), float(height))
        xs, ys = ([point[axis] for point in self.points.values()] for axis in (0, 1))
        margin = max(1.0, MARGIN * max(max(xs) - min(xs), max(ys) - min(ys)))
        return (
            max(0.0, min(xs) - margin),
            max(0.0, min(ys) - margin),
            min(float(width), max(xs) + margin),
            min(float(height), max(ys) + margin),
        )


def category_of(name: str) -> str:
    """Returns the category of an image whose file names none: its sub-folder, or ``NO_CATEGORY`` without one."""
    return name.rpartition("/")[0] or NO_CATEGORY


def check_threshold(unsure: float) -> None:
    """Raises a :class:`ConfigError` unless ``unsure``, the confidence below which a point is unsure, is in [0, 1]."""
    if not 0 <= unsure <= 1:
        raise ConfigError(f"Expected unsure, a confidence, in [0, 1] but got {unsure:g}.")


def parts_by_category(images: Iterable[ImageKeypoints]) -> dict[str, list[str]]:
    """Returns the names of the parts of each category, in the order in which they come first."""
    parts: dict[str, dict[str, None]] = defaultdict(dict)
    for image in images:
        parts[image.category] |= dict.fromkeys(image.points)
    return {category: list(names) for category, names in parts.items()}


class NameFinder:
    """Finds an image by the name that a tool gave it.

    A name may have further folders in front or lack the sub-folder, as long as one image only can be meant. Label Studio
    writes eight hexadecimal digits and a dash in front of the names of uploaded files.

    Args:
        known: names of the images that there are, relative to their folder.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.known = set(known)
        self.by_file: dict[str, list[str]] = defaultdict(list)
        for name in self.known:
            self.by_file[name.rpartition("/")[2]].append(name)

    def __call__(self, file_name: str) -> str:
        """Returns the name of the image.

        Raises:
            ValueError: when it is not known or ambiguous.
        """
        if file_name in self.known:  # a name may hold a backslash that separates nothing
            return file_name
        path = file_name.replace("\\", "/")
        if path in self.known:
            return path
        folder, slash, file = path.rpartition("/")
        fitting = self._ending_with(path)
        if not fitting and UPLOADED.match(file):
            fitting = self._ending_with(UPLOADED.sub("", file, count=1))
        if len(fitting) != 1:
            what = f"may be {' or '.join(sorted(fitting)[:2])}" if fitting else "is not in the folder"
            raise ValueError(f"the image {file_name} {what}")
        return fitting[0]

    def _ending_with(self, path: str) -> list[str]:
        same_file = self.by_file.get(path.rpartition("/")[2], [])
        return [name for name in same_file if path == name or path.endswith(f"/{name}") or name.endswith(f"/{path}")]
