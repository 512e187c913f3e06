"""What ``match`` does beside points of two images: flow fields, and points followed through a video."""

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from distill.cli.match_input import read_points
from distill.cli.run_folder import RunFolder
from distill.core.checks import check_points
from distill.core.errors import ConfigError, DataError
from distill.core.files import replacing
from distill.core.geometry import image_size
from distill.core.protocols import Matcher
from distill.data.video import Frame, VideoWriter, read_frames
from distill.evaluation.pictures import match_panel
from distill.matchers.dense import dense_flow, warp_target
from distill.matchers.match_images import match_images

LONGEST = 1024  # px, of the warped image's longer side


def write_flow(
    folder: RunFolder, name: str, matcher: Matcher, images: tuple[Tensor, Tensor], cfg: DictConfig, device: str
) -> Path:
    """Writes ``<name>.npz`` with "src", "trg" (h, w, 2), "confidence" (h, w), "src_size", "trg_size" (H, W), and ``<name>.png``.

    The picture is the target, drawn in the shape of the source. Returns the path of the former.
    """
    src_img, trg_img = images
    flow = dense_flow(matcher, src_img, trg_img, cfg.dense, cfg.size, device, cfg.resize)
    sizes = {"src_size": image_size(src_img), "trg_size": image_size(trg_img)}
    with replacing(folder / f"{name}.npz") as unfinished, unfinished.open("wb") as opened:
        np.savez_compressed(opened, **{k: v.numpy() for k, v in flow._asdict().items()}, **sizes)  # type: ignore[arg-type]
    factor = min(1.0, LONGEST / max(image_size(src_img)))
    height, width = (max(1, round(side * factor)) for side in image_size(src_img))
    to_pil_image(warp_target(trg_img, flow, (height, width))[0].clamp(0, 1)).save(folder / f"{name}.png")
    return folder / f"{name}.npz"


def follow(cfg: DictConfig, matcher: Matcher, device: str) -> dict[str, Any]:
    """Matches points of a video's first frame in each later one; writes ``tracks.csv`` and ``tracks.mp4``.

    Of a video that is damaged from some frame on, the answers for the frames before it are written, and a line says so.

    Returns:
        "src", "frames", and "tracks", a row for each frame and point: "frame", "seconds", "part", "x", "y", "confidence".

    Raises:
        ConfigError: when targets are given too, or PyAV is not installed.
        DataError: when the video cannot be read, or has no frames.
    """
    if cfg.trg is not None or cfg.dense is not None:
        raise ConfigError(
            "Expected neither trg nor dense where src is a video, whose later frames are matched; leave them out."
        )
    src, frames = Path(cfg.src), read_frames(cfg.src, cfg.every)
    first = next(frames, None)
    if first is None:
        raise DataError(f"Expected a video with frames at {src} but it has none.")
    src_img, points = as_image(first), read_points(cfg.points, src)
    check_points(points.xy, src_img, "points")
    rows: list[dict[str, Any]] = []
    with (
        RunFolder.numbered(cfg) as folder,
        replacing(folder / "tracks.mp4") as unfinished,
        VideoWriter(unfinished) as video,
    ):
        for frame in itertools.islice(itertools.chain([first], until_damaged(frames)), cfg.frames):
            found = match_images(matcher, src_img, as_image(frame), points.xy, cfg.size, device, cfg.resize)
            answers = {"target": found.trg_kps[0].numpy()}
            panel = match_panel(src_img[0], as_image(frame)[0], points.xy[0].numpy(), answers, side=384)
            video.write(np.asarray(panel.convert("RGB")))
            for part, (x, y), sure in zip(
                points.names, found.trg_kps[0].tolist(), found.confidence[0].tolist(), strict=True
            ):
                place = {"x": round(x, 2), "y": round(y, 2), "confidence": round(sure, 4)}
                rows.append({"frame": frame.number, "seconds": round(frame.seconds, 3), "part": part, **place})
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        folder.write_text("tracks.csv", text.getvalue())
    count = len(rows) // len(points.names)
    print(f"{count} frames\n{folder / 'tracks.csv'}\n{folder / 'tracks.mp4'}")
    return {"src": str(src), "frames": count, "tracks": rows}


def until_damaged(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Yields the frames up to the first that cannot be read."""
    try:
        yield from frames
    except DataError as error:
        print(f"left out: {error}")


def as_image(frame: Frame) -> Tensor:
    """Returns (1, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(frame.pixels).permute(2, 0, 1)[None].float() / 255
