"""Match points of one image with one or many others.

Writes matches.json (points in pixels of the files, with confidence), a picture of each target, and points.csv and
keypoints.json, either of which data=folder reads as data.points. The latter is in COCO's format, for annotation tools: it has
the confidences, and marks points below unsure= as not visible. Both name an image by its folder's name and its own, which have
to differ from those of all other images.

Points are pixels of the image as viewers show it: its EXIF orientation is applied. trg is a file, a list of files, or a folder,
whose images are matched one after the other. points is a list of pairs, or a file: JSON that holds such a list, CSV with the
columns x, y or part, x, y, or a data set's file of points.

dense=8 matches a grid of points 8 px apart, with or without points: flow.npz holds where they lie, flow.png is the target in the
shape of the source. Where src is a video, points of its first frame are matched in every later one: tracks.csv, tracks.mp4.
tracks= has it follow the points of TAP-Vid's arrays instead, and scores them: tracks.csv, metrics.json.

Examples:
  python -m distill match src=a.jpg trg=b.jpg points=[[120,80],[60,200]] ckpt=runs/fit/student.safetensors
  python -m distill match matcher=onnx file=student.onnx src=a.jpg trg=b.jpg points=points.json
  python -m distill match src=photos/cat/1.jpg trg=photos/cat points=photos/points.csv ckpt=runs/fit/student.safetensors
  python -m distill match src=a.jpg trg=b.jpg dense=8 ckpt=runs/fit/student.safetensors
  python -m distill match src=clip.mp4 points=[[120,80]] ckpt=runs/fit/student.safetensors
  python -m distill match src=clip.mp4 tracks=tracks.npz ckpt=runs/fit/student.safetensors
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from distill.cli.config import instantiate
from distill.cli.match_input import Points, check_apart, check_text, name_with_folder, read_points, targets
from distill.cli.match_more import follow, write_flow
from distill.cli.match_tracks import follow_tracks
from distill.cli.reporting import announce
from distill.cli.run_folder import RunFolder
from distill.core.checks import check_points
from distill.core.errors import DataError
from distill.core.protocols import Matcher, on_device
from distill.data.coco import write_coco
from distill.data.images import read_image, read_rgb, read_size
from distill.data.keypoints import ImageKeypoints, check_threshold
from distill.data.photographs import check_resize
from distill.data.video import is_video
from distill.evaluation.pictures import match_panel
from distill.matchers.dense import grid_size
from distill.matchers.match_images import match_images
from distill.system.environment import choose_device
from distill.system.progress import track

Rows = list[dict[str, Any]]
LONGEST_STEM = 150
"""Bytes of a target's name that the names of files which are made of it keep; file systems hold 255."""


def run(cfg: DictConfig) -> dict:
    """Matches, writes ``matches.json``, ``points.csv`` and pictures, and returns what the first holds.

    Raises:
        DataError: for images or points that cannot be read, images of one name, and when no image of a folder of targets can be
            read.
    """
    src = Path(cfg.src)
    check_resize(cfg.resize)
    if cfg.tracks is not None:
        return follow_tracks(cfg, _matcher(cfg), choose_device(cfg.device))
    if cfg.points is None and cfg.dense is None:
        raise DataError(
            "Expected points=[[x,y],...], or a file of them, but got none; or dense=<px> for a grid of points."
        )
    if is_video(src):
        return follow(cfg, _matcher(cfg), choose_device(cfg.device))
    if cfg.trg is None:
        raise DataError(
            "Expected trg, a target image, a list of them or a folder, but got none; only a video needs none."
        )
    source = _source(cfg, src)
    files = _targets(cfg, source)
    device, matcher = choose_device(cfg.device), _matcher(cfg)
    found: dict[Path, Rows] = {}
    with RunFolder.numbered(cfg) as folder:
        if len(files) > 1:
            announce("match", f"{src} with {len(files)} targets", device, folder.path)
        try:
            for number, file in enumerate(track(files, "match", enabled=len(files) > 1, unit="targets"), start=1):
                try:
                    trg_img = read_image(file)
                except DataError as error:
                    print(f"left out: {error}")
                    continue
                name = numbered(number, file) if len(files) > 1 else None
                found[file] = _match_target(matcher, source, trg_img, cfg, folder, name)
        finally:  # what was found stays where a later target ends the command
            if found:
                matches = write(folder, src, found, source.points)
                if source.points.names:
                    write_keypoints(folder, src, found, source.points, cfg.unsure)
        if not found:
            raise DataError(f"Expected images that can be read in {cfg.trg} but none of {len(files)} can; see above.")
    if source.points.names:
        tell(folder, found)
    return matches


class _Source(NamedTuple):
    """What is matched: an image file, its image (1, 3, H, W), and the points on it, which may be none."""

    file: Path
    image: Tensor
    points: Points


def _source(cfg: DictConfig, src: Path) -> _Source:
    image = read_image(src)
    points = Points(image.new_zeros(1, 0, 2), [])
    if cfg.points is not None:
        points = read_points(cfg.points, src)
        check_points(points.xy, image, "points")
    if cfg.dense is not None:
        grid_size(image, cfg.dense)  # an error before points are matched
    check_threshold(cfg.unsure)
    return _Source(src, image, points)


def _targets(cfg: DictConfig, source: _Source) -> list[Path]:
    """Returns the files. Those that are named, not those of a folder, are read once: an error before anything is made."""
    files, from_folder = targets(cfg.trg, source.file)
    check_text([source.file, *files])
    if source.points.names:
        check_apart(source.file, files)
    if not from_folder:
        for file in files:
            read_rgb(file)
    return files


def _match_target(
    matcher: Matcher, source: _Source, trg_img: Tensor, cfg: DictConfig, folder: RunFolder, name: str | None
) -> Rows:
    """Writes the picture and the flow field of a target, and returns the answers; ``name`` is None for the only target."""
    device, points = choose_device(cfg.device), source.points
    rows = answer(matcher, source.image, trg_img, points, cfg, device) if points.names else []
    if points.names:
        path = folder / ("match.png" if name is None else f"pictures/{name}.png")
        picture(path, source.image, trg_img, points.xy[0], rows)
    if cfg.dense is not None:
        flow = "flow" if name is None else f"flow/{name}"
        print(write_flow(folder, flow, matcher, (source.image, trg_img), cfg, device))
    return rows


def numbered(number: int, file: Path) -> str:
    """Returns the name, without suffix, of the files that are made of a target: its number and its own name, cut where it is long."""
    stem = file.stem.encode(errors="surrogateescape")[:LONGEST_STEM].decode(errors="ignore")
    return f"{number:04d}_{stem}"


def _matcher(cfg: DictConfig) -> Matcher:
    return on_device(instantiate(cfg.matcher), choose_device(cfg.device))


def answer(matcher: Matcher, src_img: Tensor, trg_img: Tensor, points: Points, cfg: DictConfig, device: str) -> Rows:
    """Returns "src", "trg" (x, y px), "confidence" and "part" of each point."""
    found = match_images(matcher, src_img, trg_img, points.xy, cfg.size, device, cfg.resize)
    return [
        {"part": name, "src": _rounded(s), "trg": _rounded(t), "confidence": round(float(c), 4)}
        for name, s, t, c in zip(points.names, points.xy[0], found.trg_kps[0], found.confidence[0], strict=True)
    ]


def picture(path: Path, src_img: Tensor, trg_img: Tensor, points: Tensor, rows: Rows) -> None:
    """Draws the source with its points (N, 2) and the target with the answers into the file ``path``."""
    answers = {"target": np.array([row["trg"] for row in rows])}
    path.parent.mkdir(exist_ok=True)
    match_panel(src_img[0], trg_img[0], points.numpy(), answers, side=384).save(path)


def write(folder: RunFolder, src: Path, found: dict[Path, Rows], points: Points) -> dict[str, Any]:
    """Writes ``matches.json`` and ``points.csv``; returns what the former holds.

    Of one target it holds "src", "trg" and "matches", of several "src" and "targets", a list of "trg" and "matches". Where the
    source is a target, too, ``points.csv`` has the points of it that were given, as in :func:`write_keypoints`.
    """
    several = [{"trg": str(file), "matches": rows} for file, rows in found.items()]
    content = {"src": str(src), **(several[0] if len(several) == 1 else {"targets": several})}
    folder.write_json("matches.json", content)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "part", "x", "y"])
    known = [(name, *_rounded(point)) for name, point in zip(points.names, points.xy[0], strict=True)]
    table.writerows((name_with_folder(src), *row) for row in known)
    for file, rows in found.items():
        if name_with_folder(file) != name_with_folder(src):
            table.writerows((name_with_folder(file), row["part"], *row["trg"]) for row in rows)
    folder.write_text("points.csv", text.getvalue())
    return content


def write_keypoints(folder: RunFolder, src: Path, found: dict[Path, Rows], points: Points, unsure: float) -> None:
    """Writes ``keypoints.json``, COCO's format: the source as a person's points, the targets as the matcher's."""
    known = {name: (float(x), float(y)) for name, (x, y) in zip(points.names, points.xy[0].tolist(), strict=True)}
    images = {name_with_folder(src): ImageKeypoints(known, size=read_size(src))}
    for file, rows in found.items():
        image = ImageKeypoints({row["part"]: (row["trg"][0], row["trg"][1]) for row in rows}, size=read_size(file))
        image.confidence = {row["part"]: row["confidence"] for row in rows}
        image.unsure = frozenset(part for part, value in image.confidence.items() if value < unsure)
        images.setdefault(name_with_folder(file), image)
    folder.write_json("keypoints.json", write_coco(images))


def tell(folder: RunFolder, found: dict[Path, Rows]) -> None:
    """Prints each point of one target, or a line for each of several."""
    if len(found) == 1:
        for row in next(iter(found.values())):
            print(f"{row['src']} -> {row['trg']}  confidence {row['confidence']:.2f}")
        print(folder / "match.png" if (folder.path / "match.png").is_file() else folder / "pictures")
        return
    for file, rows in found.items():
        print(f"{file}  mean confidence {sum(row['confidence'] for row in rows) / len(rows):.2f}")
    print(folder / "matches.json")


def _rounded(point: Tensor) -> list[float]:
    return [round(float(value), 2) for value in point]
