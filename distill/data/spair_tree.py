"""A folder in the layout of SPair-71k, so that other projects train on pairs and points of one's own.

Layout: ``Layout/large/{trn,val,test}.txt``, ``PairAnnotation/{trn,val,test}/<line>.json``, ``ImageAnnotation/<category>/*.json``
and ``JPEGImages/<category>/*.jpg``, as :mod:`distill.data.datasets.spair71k` reads them.

Pixel convention: coordinates are written as they are here, the centre of the top-left pixel at (0.5, 0.5), and
``data=spair71k`` reads them as they stand. SPair-71k's own points are whole numbers of pixels.

Names: other letters than A to Z become underscores, in categories too; those that would be the same are numbered. The files
of pairs have the colon of their line, as the published ones, which other projects look for; some file systems forbid it.

The layout has no visibility: a pair lists the points that both images show, and an unsure point is left out. Confidences
stand in a list of our own, ``confidence``, beside ``kps_ids``; other readers ignore it.
"""

import errno
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core.errors import DataError
from distill.data.datasets.spair71k import N_POINTS, SPLITS
from distill.data.image_copies import copy_image, safe_names

Point = tuple[float, float]


@dataclass(frozen=True)
class TreeImage:
    """A photograph of the tree.

    Attributes:
        path: of its file.
        size: height, width, px.
        bbox: x0, y0, x1, y1 px of the object; what stands in for it where it is not known, the layout having no place for that.
        points: x, y px by the number of the part; what is annotated.
    """

    path: Path
    size: tuple[int, int]
    bbox: tuple[float, float, float, float]
    points: Mapping[int, Point]


@dataclass(frozen=True)
class TreePair:
    """A pair of the tree.

    Attributes:
        src: name of the source, "category/file".
        trg: name of the target.
        split: "train", "val" or "test".
        ids: numbers of the parts, from 0 to 29.
        src_points: x, y px of each.
        trg_points: x, y px of each.
        confidence: of each; None for an annotation.
    """

    src: str
    trg: str
    split: str
    ids: tuple[int, ...]
    src_points: tuple[Point, ...]
    trg_points: tuple[Point, ...]
    confidence: tuple[float, ...] | None = None


def write_spair_tree(
    images: Mapping[str, TreeImage], pairs: Iterable[TreePair], folder: Path, exif_orientation: bool
) -> int:
    """Writes the tree; returns how many pairs it has. Pairs without a point are left out.

    Args:
        images: by name, "category/file".
        pairs: of these images; source and target are of one category.
        folder: to write to, which is there.
        exif_orientation: whether points belong to images as viewers show them.

    Raises:
        DataError: when there is no pair, a part's number is above 29, or the file system takes no colons.
    """
    names = safe_names(images, ".jpg")
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    used: dict[str, None] = {}
    for pair in pairs:
        if not pair.ids:
            continue
        if max(pair.ids) >= N_POINTS:
            raise DataError(
                f"Expected at most {N_POINTS} points in {pair.src} for SPair-71k's layout but one has number {max(pair.ids)}; "
                "take fewer points, such as with data.n_points."
            )
        line = _line(len(lines[pair.split]) + 1, names[pair.src], names[pair.trg])
        _write_pair(folder / "PairAnnotation" / SPLITS[pair.split] / f"{line}.json", _pair(pair, images, names))
        lines[pair.split].append(line)
        used |= {pair.src: None, pair.trg: None}
    if not used:
        raise DataError("Expected pairs with points for SPair-71k's layout but there are none; lower unsure.")
    layout = folder / "Layout" / "large"
    layout.mkdir(parents=True)
    for split, text in lines.items():
        (layout / f"{SPLITS[split]}.txt").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    for name in used:
        copy_image(images[name].path, folder / "JPEGImages" / names[name], exif_orientation)
        _write((folder / "ImageAnnotation" / names[name]).with_suffix(".json"), _image(images[name], names[name]))
    return sum(map(len, lines.values()))


def _line(number: int, src: str, trg: str) -> str:
    category = src.partition("/")[0]
    return f"{number:06d}-{Path(src).stem}-{Path(trg).stem}:{category}"


def _pair(pair: TreePair, images: Mapping[str, TreeImage], names: Mapping[str, str]) -> dict[str, Any]:
    src, trg = images[pair.src], images[pair.trg]
    content: dict[str, Any] = {"category": names[pair.src].partition("/")[0]}
    for side, name, image, points in (
        ("src", pair.src, src, pair.src_points),
        ("trg", pair.trg, trg, pair.trg_points),
    ):
        content[f"{side}_imname"] = names[name].partition("/")[2]
        content[f"{side}_imsize"] = [image.size[1], image.size[0], 3]
        content[f"{side}_bndbox"] = list(image.bbox)
        content[f"{side}_kps"] = [list(point) for point in points]
    content["kps_ids"] = [str(number) for number in pair.ids]
    if pair.confidence is not None:
        content["confidence"] = list(pair.confidence)
    return content | {"viewpoint_variation": 0, "scale_variation": 0, "truncation": 0, "occlusion": 0, "mirror": 0}


def _image(image: TreeImage, name: str) -> dict[str, Any]:
    slots: dict[str, list[float] | None] = {str(number): None for number in range(N_POINTS)}
    slots |= {str(number): list(point) for number, point in image.points.items() if number < N_POINTS}
    category, _, file = name.partition("/")
    size = {"image_width": image.size[1], "image_height": image.size[0]}
    return {"filename": file, "category": category, **size, "bndbox": list(image.bbox), "kps": slots}


def _write_pair(file: Path, content: Mapping[str, Any]) -> None:
    try:
        _write(file, content)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DataError(
            f"Expected a file system that takes colons for SPair-71k's layout but it refuses the name {file.name}; write to another disk."
        ) from error


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
