"""COCO's keypoint format (https://cocodataset.org/#format-data), as CVAT, Roboflow, FiftyOne, Label Studio and others use it.

Pixel convention: the format gives each keypoint "a 0-indexed location", the index of a pixel, so that the centre of the
top-left pixel is (0, 0). Half a pixel is added to keypoints when they are read and subtracted when they are written, as
detectron2 does (docs/tutorials/datasets.md: "adds 0.5 to absolute keypoint coordinates to convert them from discrete
pixel indices to floating point coordinates"). Boxes, [x, y, width, height], are measured from the top-left corner of the
image and need no shift.

Visibility 0 means that a point is not annotated; 1 (hidden) and 2 (visible) are both read as annotated, and written again as
they were. What a matcher set has its confidence in a list of our own, ``keypoint_confidence``, with null for what a person set;
other readers ignore it. A matcher's point with visibility 1 is an unsure one: it is read as such, and is no annotation. An
object with that list and without any point is one of which a person saw none.

The format requires a box. Where none is known, the one around the points is written, and once more as ``keypoint_bbox``, a key
of our own: a ``bbox`` equal to it is read as none, also when the points were corrected since. Files of earlier versions lack
the key; their boxes that equal the one around the file's points are read as none, too.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from distill.data.json_values import by_id, entry_of, is_bounded_number, numbers_in, objects_in, shown
from distill.data.keypoints import Box, ImageKeypoints, NameFinder, parts_by_category

PIXEL_CENTRE = 0.5  # px, from a pixel's index to its centre
VISIBILITIES = (0, 1, 2)  # not labelled, labelled but not visible, labelled and visible
CONFIDENCE = "keypoint_confidence"
"""Key of the list of confidences in an annotation."""
MADE_UP_BOX = "keypoint_bbox"
"""Key of the box that was made up around the keypoints of an annotation; null where its box is known."""
ROUNDING = 0.05  # px by which sides of equal boxes may differ, as tools round numbers


def is_coco(content: Any) -> bool:
    """Returns whether the content of a JSON file is COCO's format."""
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def read_coco_images(content: Mapping[str, Any], known: Iterable[str]) -> dict[str, ImageKeypoints]:
    """Returns what a COCO file says of each image, by the image's name in ``known``.

    An image is found by its ``file_name``, see :class:`NameFinder`. Objects without keypoints are passed over, and so are
    keys that are not needed. An object whose keypoints are all unsure answers of a matcher is returned with ``unsure``.

    Args:
        content: of the JSON file.
        known: names of the images that there are.

    Raises:
        ValueError: when an image has several objects, an image is not known or ambiguous, an id is repeated or not listed, or
            a keypoint is malformed.
    """
    find = NameFinder(known)
    found: dict[str, ImageKeypoints] = {}
    for entry, annotation, category, parts in _objects(content):
        image = _keypoints(annotation, parts)
        if not image.points and CONFIDENCE not in annotation:  # which says that a person found none of the points
            continue
        name = find(str(entry_of(entry, "file_name", f"image {entry['id']}")))
        if name in found:
            raise ValueError(
                f"{name} has two objects with keypoints, of which one can be matched; crop one image for each object"
            )
        image.category, image.size = category, _size(entry)
        image.bbox = _known_box(annotation, image)
        found[name] = image
    if not found:
        raise ValueError("no annotation has keypoints with a visibility above 0")
    return found


def write_coco(images: Mapping[str, ImageKeypoints], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the content of a COCO file: what :func:`read_coco_images` reads.

    What ``base`` holds is kept: other images and objects, segmentations, skeletons, numbers, and keys of any tool's own.
    The keypoints of the images given are replaced, parts that its categories lack are added at their end, and what COCO
    requires and the file left out is filled in.

    Args:
        images: by name; each needs a ``size``.
        base: content of a COCO file that is added to.
    """
    content: dict[str, Any] = copy.deepcopy(dict(base or {"images": [], "annotations": [], "categories": []}))
    categories = _categories(content, parts_by_category(images.values()))
    places = coco_places(content, images)
    numbers = {key: _Numbers(content[key]) for key in ("images", "annotations")}
    for name, image in images.items():
        assert image.size is not None, f"{name} has no size"
        height, width = image.size
        entry, annotation = places.get(name, (None, None))
        if entry is None:
            entry = {"id": numbers["images"].next(), "file_name": name}
            content["images"].append(entry)
        entry |= {"width": width, "height": height}
        if annotation is None:
            annotation = {"id": numbers["annotations"].next(), "image_id": entry["id"]}
            content["annotations"].append(annotation)
        annotation |= _annotation(annotation, image, categories[image.category])
    _complete(content, numbers["annotations"])
    return content


def _objects(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], str, list[str]]]:
    """Yields the image's entry, the annotation, the category's name and its parts, of each annotation with keypoints."""
    categories = by_id(objects_in(content["categories"], "categories"), "categories")
    entries = by_id(objects_in(content["images"], "images"), "images")
    for annotation in objects_in(content["annotations"], "annotations"):
        category = _listed(annotation, "category", categories, "categories")
        if annotation.get("keypoints"):
            image = _listed(annotation, "image", entries, "images")
            yield image, annotation, str(category.get("name", category["id"])), _part_names(category)


def _categories(content: dict[str, Any], parts: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Adds categories and parts that are not there; returns the entries by name. Keypoints grow with their category."""
    known = {str(entry.get("name", entry["id"])): entry for entry in content["categories"]}
    numbers = _Numbers(content["categories"], first=1)
    for name in sorted(parts):
        if name not in known:
            known[name] = {"id": numbers.next(), "name": name, "supercategory": "", "keypoints": [], "skeleton": []}
            content["categories"].append(known[name])
        entry = known[name]
        names = [str(part) for part in entry.get("keypoints") or []]
        entry["keypoints"] = names + [part for part in parts[name] if part not in names]
        entry.setdefault("skeleton", [])
        for annotation in content["annotations"]:
            if annotation["category_id"] == entry["id"] and annotation.get("keypoints"):
                missing = len(entry["keypoints"]) - len(annotation["keypoints"]) // 3
                annotation["keypoints"] = [*annotation["keypoints"], *[0] * (3 * missing)]
                if annotation.get(CONFIDENCE) is not None:
                    annotation[CONFIDENCE] = [*annotation[CONFIDENCE], *[None] * missing]
    return known


def coco_places(
    content: Mapping[str, Any], images: Mapping[str, ImageKeypoints]
) -> dict[str, tuple[dict[str, Any], dict[str, Any] | None]]:
    """Returns the entry and the annotation with keypoints of each image that the file names."""
    find = NameFinder(images)
    found: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}
    for entry in content["images"]:
        try:
            name = find(str(entry["file_name"]))
        except ValueError:
            continue  # an image that is not asked for
        found[name] = (entry, None)
    by_id = {entry["id"]: name for name, (entry, _) in found.items()}
    for entry, annotation, category, _ in _objects(content):
        if entry["id"] not in by_id or category != images[by_id[entry["id"]]].category:
            continue
        name = by_id[entry["id"]]
        if found[name][1] is None or any(value > 0 for value in annotation["keypoints"][2::3]):
            found[name] = (entry, annotation)
    return found


def _annotation(old: Mapping[str, Any], image: ImageKeypoints, category: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of an annotation that the keypoints decide."""
    parts = category["keypoints"]
    keypoints = [value for part in parts for value in _keypoint(image, part)]
    image = replace(image, bbox=_box_to_write(old, image, parts))
    x0, y0, x1, y1 = image.box()
    stays = _equal(_box(old), image.box()) or old.get("segmentation")  # an outline's area is not the box's
    found: dict[str, Any] = {
        "category_id": category["id"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (stays and old.get("area")) or (x1 - x0) * (y1 - y0),
        "iscrowd": old.get("iscrowd", 0),
        "num_keypoints": len(image.points),
        "keypoints": keypoints,
    }
    if image.confidence or CONFIDENCE in old:
        found[CONFIDENCE] = [image.confidence.get(part) for part in parts]
    if image.bbox is None or MADE_UP_BOX in old:
        found[MADE_UP_BOX] = found["bbox"] if image.bbox is None else None
    return found


def _box_to_write(old: Mapping[str, Any], image: ImageKeypoints, parts: list[str]) -> Box | None:
    """Returns the known box of an image; one that is the old annotation's, or none, is known as it was there.

    Corrections may come without a box, or with one of which they do not say that it was made up.
    """
    if not old.get("keypoints") or not (image.bbox is None or _equal(image.bbox, _box(old))):
        return image.bbox
    return _known_box(old, replace(_keypoints(old, parts), size=image.size))


def _complete(content: dict[str, Any], numbers: "_Numbers") -> None:
    """Adds to annotations what COCO requires and the file leaves out."""
    for annotation in content["annotations"]:
        if "id" not in annotation:
            annotation["id"] = numbers.next()
        annotation.setdefault("iscrowd", 0)
        keypoints = annotation.get("keypoints") or []
        annotation.setdefault(
            "num_keypoints", sum(value > 0 for value in keypoints[2::3])
        )  # 0 of boxes and outlines, too
        if not annotation.get("bbox"):
            annotation["bbox"] = _pixel_box(keypoints)
            if keypoints:
                annotation[MADE_UP_BOX] = annotation["bbox"]
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])


def _pixel_box(keypoints: list[float]) -> list[float]:
    """Returns x, y, width, height around the pixels of annotated keypoints; zeros where there are none."""
    xs, ys = ([c for c, v in zip(keypoints[axis::3], keypoints[2::3], strict=True) if v > 0] for axis in (0, 1))
    return [min(xs), min(ys), max(xs) + 1 - min(xs), max(ys) + 1 - min(ys)] if xs else [0.0] * 4


class _Numbers:
    """Yields numbers that no entry of a list has as its ``id``."""

    def __init__(self, entries: Iterable[Mapping[str, Any]], first: int = 1) -> None:
        used = [entry["id"] for entry in entries if isinstance(entry.get("id"), int)]
        self.last = max([first - 1, *used])

    def next(self) -> int:
        self.last += 1
        return self.last


def _keypoint(image: ImageKeypoints, part: str) -> tuple[float, float, int]:
    if part not in image.points:
        return 0.0, 0.0, 0
    x, y = image.points[part]
    return x - PIXEL_CENTRE, y - PIXEL_CENTRE, image.visibility(part)


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
    if not all(is_bounded_number(side) and side == int(side) > 0 for side in sides):
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


def _keypoints(annotation: Mapping[str, Any], parts: list[str]) -> ImageKeypoints:
    """Returns the points of an annotation, with a matcher's confidences and what it was unsure of."""
    name = f"annotation {annotation.get('id')}"
    meaning = f"x, y and visibility of {len(parts)} parts"
    values = numbers_in(annotation["keypoints"], 3 * len(parts), f"keypoints of {name}", meaning)
    visibility = dict(zip(parts, values[2::3], strict=True))
    odd = next((part for part, value in visibility.items() if value not in VISIBILITIES), None)
    if odd is not None:
        raise ValueError(
            f"the visibility {visibility[odd]:g} of {odd} in {name} is unknown: it is 0, 1 or 2, behind x and y"
        )
    image = ImageKeypoints({})
    for part, x, y, confidence in zip(
        parts, values[::3], values[1::3], _confidences(annotation, len(parts)), strict=True
    ):
        if visibility[part] > 0:
            image.points[part] = x + PIXEL_CENTRE, y + PIXEL_CENTRE
            image.confidence |= {} if confidence is None else {part: confidence}
    not_visible = frozenset(part for part in image.points if visibility[part] == 1)
    image.unsure, image.hidden = not_visible & image.confidence.keys(), not_visible - image.confidence.keys()
    return image


def _confidences(annotation: Mapping[str, Any], count: int) -> list[float | None]:
    """Returns the confidence of each part, None for what a person set."""
    given = annotation.get(CONFIDENCE)
    if given is None:
        return [None] * count
    known = [value for value in given if value is not None] if isinstance(given, list) else [-1]
    if not all(is_bounded_number(value) and 0 <= value <= 1 for value in known) or len(given) != count:
        raise ValueError(
            f"{CONFIDENCE} of annotation {annotation.get('id')} is {shown(given)} where {count} numbers in [0, 1] or nulls "
            "are expected"
        )
    return [None if value is None else float(value) for value in given]


def _known_box(annotation: Mapping[str, Any], image: ImageKeypoints) -> Box | None:
    """Returns the box of the annotation that ``image`` has the points of; None without one, and for one that was made up."""
    box = _box(annotation)
    if MADE_UP_BOX in annotation:
        return None if _equal(box, _box(annotation, MADE_UP_BOX)) else box
    if image.size is None:
        return box
    height, width = image.size
    made_up = replace(image, bbox=None).box()
    whole = made_up == (0, 0, width, height)  # as a person's box of a cropped photograph may be
    return None if _equal(box, made_up) and not whole else box


def _equal(one: Box | None, other: Box | None) -> bool:
    """Returns whether there are two boxes that are equal to rounding."""
    if one is None or other is None:
        return False
    return all(abs(a - b) <= ROUNDING for a, b in zip(one, other, strict=True))


def _box(annotation: Mapping[str, Any], key: str = "bbox") -> Box | None:
    if annotation.get(key) in (None, [], [0, 0, 0, 0]):  # a tool that has none may write zeros
        return None
    name = f"annotation {annotation.get('id')}"
    x, y, width, height = numbers_in(annotation[key], 4, f"{key} of {name}", "x, y, width, height in px")
    if not (width > 0 and height > 0):
        raise ValueError(f"the {key} {shown(annotation[key])} of {name} has no area; it is x, y, width, height in px")
    return x, y, x + width, y + height
