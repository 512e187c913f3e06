"""Label Studio's JSON (https://labelstud.io/guide/export): a list of tasks, keypoints as regions of type ``keypointlabels``.

Pixel convention: x and y are percentages of the image's sides, measured from its top-left corner, so that the centre of the
top-left pixel lies half a pixel inside. Nothing is added or subtracted.

What a person set stands under ``annotations``; what a matcher set stands under ``predictions``, with its confidence as
``score``. The format has no visibility: an unsure point says "unsure" in its region's ``meta``. Predictions are not read.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from distill.data.images import SUFFIXES
from distill.data.keypoints import ImageKeypoints, NameFinder, category_of

LOCAL = "/data/local-files/?d="  # how Label Studio names files of its local storage
SHOWN_WIDTH = 0.5  # of a point, in percent of the image's width


def is_label_studio(content: Any) -> bool:
    """Returns whether the content of a JSON file is a list of Label Studio's tasks."""
    return isinstance(content, list) and bool(content) and all(isinstance(t, dict) and "data" in t for t in content)


def read_label_studio(content: list[dict[str, Any]], known: Iterable[str]) -> dict[str, ImageKeypoints]:
    """Returns what the annotations of tasks say of each image, by the image's name in ``known``.

    Of several annotations of a task the last that was not cancelled counts; tasks without keypoints are passed over.

    Args:
        content: of the JSON file.
        known: names of the images that there are.

    Raises:
        ValueError: when an image is not known, has a part twice, was rotated, or a point is not in the image.
    """
    find, found = NameFinder(known), {}
    for task in content:
        regions = _regions(task)
        if not regions:
            continue
        name = find(_image_name(task))
        if name in found:
            raise ValueError(f"{name} has two tasks with keypoints; remove one")
        found[name] = _read(name, regions)
    if not found:
        raise ValueError("no task has annotated keypoints")
    return found


def write_label_studio(images: Mapping[str, ImageKeypoints]) -> list[dict[str, Any]]:
    """Returns the content of a file that Label Studio imports; images are named as files of its local storage.

    The names are percent-encoded, as Label Studio does it: in an address "+" is a space, and "#", "&" and "%" end or begin something.
    An image that only a matcher has looked at has no annotation: Label Studio counts an empty one as done, and asks nobody for another.

    Args:
        images: by name; each needs a ``size``.
    """
    return [_task(number, name, image) for number, (name, image) in enumerate(images.items(), start=1)]


def _task(number: int, name: str, image: ImageKeypoints) -> dict[str, Any]:
    by_person, by_matcher = (list(_write(image, by_matcher=who)) for who in (False, True))
    return {
        "id": number,
        "data": {"image": LOCAL + quote(name)},
        "annotations": [{"result": by_person}] if by_person or not image.confidence else [],
        "predictions": [{"result": by_matcher}] if image.confidence else [],
    }


def _regions(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    done = [entry for entry in task.get("annotations") or [] if not entry.get("was_cancelled")]
    regions = done[-1].get("result") or [] if done else []
    return [region for region in regions if region.get("type") == "keypointlabels"]


def path_in(address: str) -> str:
    """Returns the path that the address of an image names: its own, or the one that it asks the local storage for."""
    parts = urlsplit(address)
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0]


def _image_name(task: Mapping[str, Any]) -> str:
    """Returns the path of the task's image."""
    for value in task["data"].values():
        if isinstance(value, str) and PurePosixPath(path_in(value)).suffix.lower() in SUFFIXES:
            return path_in(value)
    raise ValueError(f"task {task.get('id')} names no image in its data")


def _read(name: str, regions: list[dict[str, Any]]) -> ImageKeypoints:
    sizes = {(int(region["original_height"]), int(region["original_width"])) for region in regions}
    if len(sizes) > 1 or any(region.get("image_rotation") for region in regions):
        raise ValueError(f"the regions of {name} are of a rotated image, or of images of several sizes")
    ((height, width),) = sizes
    points: dict[str, tuple[float, float]] = {}
    for region in regions:
        labels = region["value"]["keypointlabels"]
        if len(labels) != 1:
            raise ValueError(
                f"a point of {name} is labelled {labels} where one part is expected; give each part a point of its own"
            )
        part = labels[0]
        x, y = float(region["value"]["x"]), float(region["value"]["y"])
        if part in points:
            raise ValueError(f"{name} has {part} twice; points belong to one object: crop one image for each object")
        if not (0 <= x <= 100 and 0 <= y <= 100):
            raise ValueError(f"{part} of {name} lies at ({x:g}, {y:g}) percent of the image")
        points[str(part)] = (x / 100 * width, y / 100 * height)
    return ImageKeypoints(points, size=(height, width), category=category_of(name))


def _write(image: ImageKeypoints, by_matcher: bool) -> Iterator[dict[str, Any]]:
    assert image.size is not None, "an image that is written needs its size"
    height, width = image.size
    for part, (x, y) in image.points.items():
        if (part in image.confidence) != by_matcher:
            continue
        percent = {"x": x / width * 100, "y": y / height * 100, "width": SHOWN_WIDTH, "keypointlabels": [part]}
        region: dict[str, Any] = {"id": part, "type": "keypointlabels", "from_name": "keypoints", "to_name": "image"}
        region |= {"original_width": width, "original_height": height, "image_rotation": 0, "value": percent}
        if by_matcher:
            region["score"] = image.confidence[part]
        if part in image.unsure:
            region["meta"] = {"text": ["unsure"]}
        yield region
