"""YOLO's pose format (https://docs.ultralytics.com/datasets/pose): a text file for each image, and ``data.yaml``.

A line is the number of the class, the box's centre, width and height, and x, y and visibility of each keypoint; all but the
visibility are fractions of the image's sides. All classes share one list of keypoints: that of all parts of all categories.

Pixel convention: fractions are measured from the image's top-left corner, so that the centre of the top-left pixel of an
image W px wide is at 0.5 / W. Nothing is added or subtracted. Ultralytics' own converter divides COCO's pixel indices by
the sides without adding half a pixel, so its files lie half a pixel beside ours.

A box that reaches out of its image, as COCO's may, is cut at the border: Ultralytics takes no fractions above 1.

The format has no place for confidences. An unsure or hidden point has visibility 1, which is "labelled but not visible".
"""

from collections.abc import Mapping
from pathlib import Path

import yaml

from distill.data.image_copies import copy_image, safe_names
from distill.data.keypoints import ImageKeypoints, parts_by_category


def write_yolo_pose(
    images: Mapping[str, ImageKeypoints],
    root: Path,
    folder: Path,
    splits: Mapping[str, str],
    exif_orientation: bool = True,
) -> None:
    """Writes a data set for YOLO: ``images/<split>``, ``labels/<split>`` and ``data.yaml``.

    Args:
        images: by name; each needs a ``size``.
        root: folder of the images.
        folder: to write to, which is there.
        splits: "train" or "val" by image.
        exif_orientation: whether points belong to images as viewers show them.
    """
    by_category = parts_by_category(images.values())
    parts = list(dict.fromkeys(part for category in sorted(by_category) for part in by_category[category]))
    classes = sorted(by_category)
    for name, copied in safe_names(images).items():
        place = Path(splits[name]) / copied
        copy_image(root / name, folder / "images" / place, exif_orientation)
        label = folder / "labels" / place.with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(yolo_line(images[name], classes.index(images[name].category), parts) + "\n", encoding="utf-8")
    used = {split: f"images/{split}" for split in ("train", "val") if split in splits.values()}
    described = {
        "train": used.get("train", "images/val"),
        "val": used.get("val", "images/train"),  # Ultralytics asks for both
        "kpt_shape": [len(parts), 3],
        "names": dict(enumerate(classes)),
        "kpt_names": {number: parts for number in range(len(classes))},
    }
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def yolo_line(image: ImageKeypoints, number: int, parts: list[str]) -> str:
    """Returns the line of an object: class ``number``, box, and the keypoints in the order of ``parts``."""
    assert image.size is not None, "an image that is written needs its size"
    height, width = image.size
    sides = (width, height, width, height)
    x0, y0, x1, y1 = (min(max(value, 0.0), side) for value, side in zip(image.box(), sides, strict=True))
    values = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
    cells = [str(number), *(f"{value:.6f}" for value in values)]
    for part in parts:
        if part in image.points:
            x, y = image.points[part]
            cells += [f"{x / width:.6f}", f"{y / height:.6f}", str(image.visibility(part))]
        else:
            cells += ["0", "0", "0"]
    return " ".join(cells)
