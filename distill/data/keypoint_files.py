"""Writing keypoints in the formats of annotation tools.

Each format's module says which pixel convention it assumes, where the confidence goes, and how an unsure point is marked.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.files import new_folder, replacing
from distill.data.coco import write_coco
from distill.data.keypoints import ImageKeypoints
from distill.data.label_studio import write_label_studio
from distill.data.sleap import write_deeplabcut, write_slp
from distill.data.yolo_pose import write_yolo_pose

FORMATS = {
    "coco": ".json",
    "label_studio": ".json",
    "deeplabcut": ".csv",
    "sleap": ".slp",
    "yolo_pose": "",
    "spair71k": "",
}
"""The formats, and what the names of their files end with; "" for a folder."""


def check_format(format_: str, path: Path, name: str) -> None:
    """Checks where a format is to be written, before anything is computed.

    Args:
        format_: its name.
        path: where to.
        name: of the setting that says so, for messages.

    Raises:
        ConfigError: for an unknown format, another suffix than the format's, or what is there already.
    """
    if format_ not in FORMATS:
        raise ConfigError(f"Expected a known format but got {format_!r}; {nearest(format_, FORMATS)}.")
    suffix = FORMATS[format_]
    if suffix and path.suffix != suffix:
        raise ConfigError(f"Expected {name} to end in {suffix} for {format_} but got {path}; rename it.")
    if path.exists():
        raise ConfigError(f"Expected {name} to be new but {path} is there; choose another name.")


def write_keypoints(
    images: Mapping[str, ImageKeypoints],
    root: Path,
    path: Path,
    format_: str,
    splits: Mapping[str, str] | None = None,
    exif_orientation: bool = True,
) -> None:
    """Writes keypoints in one of ``FORMATS`` except spair71k, which is of pairs.

    Args:
        images: by name, relative to ``root``; each needs a ``size``.
        root: folder of the images.
        path: the file or folder to write, see :func:`check_format`; it appears whole or not at all.
        format_: which one.
        splits: "train" or "val" by image, for YOLO; without it all are for training.
        exif_orientation: whether points belong to images as viewers show them.

    Raises:
        DataError: when there are no images, or they cannot be read or written.
    """
    if not any(image.points for image in images.values()):
        raise DataError("Expected images with keypoints to write but there are none.")
    if format_ == "yolo_pose":
        with new_folder(path) as unfinished:
            write_yolo_pose(images, root, unfinished, splits or dict.fromkeys(images, "train"), exif_orientation)
        return
    with replacing(path) as file:
        if format_ == "coco":
            write_json(file, write_coco(images))
        elif format_ == "label_studio":
            write_json(file, write_label_studio(images))
        elif format_ == "deeplabcut":
            write_deeplabcut(images, file)
        else:
            write_slp(images, root, file)


def write_json(file: Path, content: Any) -> None:
    """Writes ``content`` to ``file``, which nothing protects from interruption: give it a temporary name."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 has characters that cannot be encoded; their escapes are JSON's.
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
