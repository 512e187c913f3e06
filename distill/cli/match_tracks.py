"""What ``match`` does with annotated tracks of a video: it follows their points, and says how far it is off."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from distill.cli.match_more import as_image, until_damaged
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError, DataError
from distill.core.geometry import image_size
from distill.core.protocols import Matcher
from distill.data.tracks import Tracks, read_tracks
from distill.data.video import is_video, read_frames
from distill.matchers.match_images import match_images
from distill.metrics.position_accuracy import position_accuracy

CONVENTION = "TAP-Vid position accuracy, percent of visible points after the first visible frame, at 256 x 256 px"


def follow_tracks(cfg: DictConfig, matcher: Matcher, device: str) -> dict[str, Any]:
    """Follows each track from the first frame that it is visible in; writes ``tracks.csv`` and ``metrics.json``.

    Returns:
        What ``metrics.json`` holds: "src", "frames", "tracks", "position_accuracy" and "convention".

    Raises:
        ConfigError: when points, targets or a part of the frames are asked for too, or ``src`` is no video.
        DataError: when a file cannot be read, or the video has another number of frames than the tracks.
    """
    alone = cfg.trg is None and cfg.dense is None and cfg.points is None and cfg.every == 1 and cfg.frames is None
    if not (alone and is_video(cfg.src)):
        raise ConfigError(
            "Expected tracks with a video in src, and neither points, trg, dense, every nor frames; leave them out."
        )
    tracks = read_tracks(cfg.tracks)
    with RunFolder.numbered(cfg) as folder:
        found, confidence = _followed(cfg, matcher, device, tracks)
        _write(folder, found, confidence, tracks)
        accuracy = position_accuracy(found, tracks.points, tracks.visible, tracks.first())
        figures = {key: round(value, 3) for key, value in accuracy.items()}
        count, frames = tracks.visible.shape
        content: dict[str, Any] = {"src": str(cfg.src), "frames": frames, "tracks": count, "position_accuracy": figures}
        content["convention"] = CONVENTION
        folder.write_json("metrics.json", content)
    print(
        f"{count} tracks, {frames} frames: delta_avg {figures['delta_avg']:.1f} ({CONVENTION})\n{folder / 'tracks.csv'}"
    )
    return content


def _followed(
    cfg: DictConfig, matcher: Matcher, device: str, tracks: Tracks
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns places (N, T, 2) as fractions of the frame's sides and confidences (N, T); NaN before a point is visible."""
    first, (count, length) = tracks.first(), tracks.visible.shape
    found, confidence = np.full((count, length, 2), np.nan), np.full((count, length), np.nan)
    sources: dict[int, Tensor] = {}
    number = -1
    for frame in until_damaged(read_frames(cfg.src)):
        number, image = frame.number, as_image(frame)
        if number >= length:
            break
        sides = np.array(image_size(image)[::-1], np.float64)
        if (first == number).any():
            sources[number] = image
        for start, source in sources.items():
            mine = first == start
            # a place beyond the border, which annotators may click, is moved to it
            points = torch.from_numpy(tracks.points[mine, start].clip(0, 1) * sides).float()
            answer = match_images(matcher, source, image, points, cfg.size, device, cfg.resize)
            found[mine, number], confidence[mine, number] = (
                answer.trg_kps[0].numpy() / sides,
                answer.confidence[0].numpy(),
            )
    if number != length - 1:
        has = "more" if number >= length else number + 1
        raise DataError(
            f"Expected a video of the {length} frames of {cfg.tracks} but {cfg.src} has {has}; give its own tracks."
        )
    return found, confidence


def _write(folder: RunFolder, found: NDArray, confidence: NDArray, tracks: Tracks) -> Path:
    """Writes ``tracks.csv``, a row for each frame and point: places as fractions of the frame's sides.

    They have all digits, so that the file scores as ``metrics.json`` says: rounding decides points that lie at a threshold.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["frame", "track", "x", "y", "confidence", "visible"])
    for (track, frame), sure in np.ndenumerate(confidence):
        if np.isfinite(sure):
            x, y = found[track, frame]
            table.writerow([frame, track, float(x), float(y), f"{sure:.4f}", int(tracks.visible[track, frame])])
    return folder.write_text("tracks.csv", text.getvalue())
