"""COCO's keypoint format (https://cocodataset.org/#format-data), as CVAT, Roboflow, FiftyOne, Label Studio and others use it.

Pixel convention: the format gives each keypoint "a 0-indexed location", the index of a pixel, so that the centre of the
top-left pixel is (0, 0). Half a pixel is added to keypoints when they are read and subtracted when they are written, as
detectron2 does (docs/tutorials/datasets.md: "adds 0.5 to absolute keypoint coordinates to convert them from discrete
pixel indices to floating point coordinates"). Boxes, [x, y, width, height], are measured from the top-left corner of the
image and need no shift.

Visibility 0 means that a point is not annotated; 1 (hidden) and 2 (visible) are both read as annotated.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.data.json_values import by_id, entry_of, is_number, numbers_in, objects_in, shown

PIXEL_CENTRE = 0.5  # px, from a pixel's index to its centre
VISIBILITIES = (0, 1, 2)  # not labelled, labelled but not visible, labelled and visible


@dataclass
class CocoImage:
    """The one object of an image.

    Attributes:
        points: x, y by part, px with the centre of the top-left pixel at (0.5, 0.5).
        bbox: x0, y0, x1, y1 px.
        size: height, width, px.
        unsure: parts that are written as labelled but not visible.
        category: name of the object's category.
    """

    points: dict[str, tuple[float, float]]
    bbox: tuple[float, float, float, float] | None = None
    size: tuple[int, int] | None = None
    unsure: frozenset[str] = field(default_factory=frozenset)
    category: str = "object"


def is_coco(content: Any) -> bool:
    """Says whether the content of a JSON file is COCO's format."""
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def read_coco_images(content: Mapping[str, Any], known: Iterable[str]) -> dict[str, CocoImage]:
    """Returns what a COCO file says of each image, by the image's name in ``known``.

    An image is found by its ``file_name``, also when that has further folders in front or lacks the sub-folder, as long
    as one image only can be meant. Objects without annotated keypoints are passed over.

    Args:
        content: of the JSON file.
        known: names of the images that there are.

    Raises:
        ValueError: when an image has several objects, an image is not known or ambiguous, an id is repeated or not listed, or
            a keypoint is malformed.
    """
    categories = by_id(objects_in(content["categories"], "categories"), "categories")
    entries = by_id(objects_in(content["images"], "images"), "images")
    find = _NameFinder(known)
    found: dict[str, CocoImage] = {}
    for annotation in objects_in(content["annotations"], "annotations"):
        category = _listed(annotation, "category", categories, "categories")
        points = _points(annotation, _part_names(category))
        if not points:
            continue
        entry = _listed(annotation, "image", entries, "images")
        name = find(str(entry_of(entry, "file_name", f"image {entry['id']}")))
        if name in found:
            raise ValueError(
                f"{name} has two objects with keypoints, of which one can be matched; crop one image for each object"
            )
        label = str(category.get("name", category["id"]))
        found[name] = CocoImage(points, _box(annotation), _size(entry), category=label)
    if not found:
        raise ValueError("no annotation has keypoints with a visibility above 0")
    return found


def write_coco(images: Mapping[str, CocoImage]) -> dict[str, Any]:
    """Returns the content of a COCO file: what :func:`read_coco_images` reads.

    Args:
        images: by name; each needs a ``size``.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    for image in images.values():
        parts[image.category] += [part for part in image.points if part not in parts[image.category]]
    numbers = {category: number for number, category in enumerate(sorted(parts), start=1)}
    entries, annotations = [], []
    for number, (name, image) in enumerate(images.items(), start=1):
        assert image.size is not None, f"{name} has no size"
        height, width = image.size
        x0, y0, x1, y1 = image.bbox or (0.0, 0.0, float(width), float(height))
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": numbers[image.category],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "num_keypoints": len(image.points),
                "keypoints": [value for part in parts[image.category] for value in _keypoint(image, part)],
            }
        )
    categories = [
        {"id": numbers[name], "name": name, "supercategory": "", "keypoints": parts[name], "skeleton": []}
        for name in sorted(parts)
    ]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _keypoint(image: CocoImage, part: str) -> tuple[float, float, int]:
    if part not in image.points:
        return 0.0, 0.0, 0
    x, y = image.points[part]
    return x - PIXEL_CENTRE, y - PIXEL_CENTRE, 1 if part in image.unsure else 2


def _listed(annotation: dict[str, Any], kind: str, entries: Mapping[Any, dict[str, Any]], where: str) -> dict[str, Any]:
    """Returns the entry of ``where`` that an annotation is of."""
    name = f"annotation {annotation.get('id')}"
    key = entry_of(annotation, f"{kind}_id", name)
    if not isinstance(key, int | str) or key not in entries:
        raise ValueError(f"{name} is of {kind} {shown(key)}, which {where} does not list")
    return entries[key]


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    if not {"height", "width"} <= entry.keys():
        return None
    sides = entry["height"], entry["width"]
    if not all(is_number(side) and side == int(side) > 0 for side in sides):
        raise ValueError(f"width and height of image {entry['id']} are {shown(sides[::-1])}, which are no sides in px")
    return int(sides[0]), int(sides[1])


def _part_names(category: Mapping[str, Any]) -> list[str]:
    name = f"category {category.get('name', category['id'])}"
    given = category.get("keypoints") or []
    if not isinstance(given, list):
        raise ValueError(f"keypoints of {name} is {shown(given)} where a list of names is expected")
    names = [str(part) for part in given]
    if len(set(names)) < len(names):
        raise ValueError(f"{name} names a keypoint twice")
    return names


def _points(annotation: Mapping[str, Any], parts: list[str]) -> dict[str, tuple[float, float]]:
    if not annotation.get("keypoints"):
        return {}
    name = f"annotation {annotation.get('id')}"
    meaning = f"x, y and visibility of {len(parts)} parts"
    values = numbers_in(annotation["keypoints"], 3 * len(parts), f"keypoints of {name}", meaning)
    points = {}
    for part, x, y, visibility in zip(parts, values[::3], values[1::3], values[2::3], strict=True):
        if visibility not in VISIBILITIES:
            raise ValueError(
                f"the visibility {visibility:g} of {part} in {name} is unknown: it is 0, 1 or 2, behind x and y"
            )
        if visibility > 0:
            points[part] = x + PIXEL_CENTRE, y + PIXEL_CENTRE
    return points


def _box(annotation: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    if not annotation.get("bbox"):
        return None
    name = f"annotation {annotation.get('id')}"
    x, y, width, height = numbers_in(annotation["bbox"], 4, f"bbox of {name}", "x, y, width, height in px")
    if not (width > 0 and height > 0):
        raise ValueError(f"the bbox {shown(annotation['bbox'])} of {name} has no area; it is x, y, width, height in px")
    return x, y, x + width, y + height


class _NameFinder:
    """Finds an image by the name that a tool gave it."""

    def __init__(self, known: Iterable[str]) -> None:
        self.known = set(known)
        self.by_file: dict[str, list[str]] = defaultdict(list)
        for name in self.known:
            self.by_file[name.rpartition("/")[2]].append(name)

    def __call__(self, file_name: str) -> str:
        path = file_name.replace("\\", "/")
        if path in self.known:
            return path
        same_file = self.by_file.get(path.rpartition("/")[2], [])
        fitting = [name for name in same_file if path.endswith(f"/{name}") or name.endswith(f"/{path}")]
        if len(fitting) != 1:
            what = f"may be {' or '.join(sorted(fitting)[:2])}" if fitting else "is not in the folder"
            raise ValueError(f"the image {file_name} {what}")
        return fitting[0]
