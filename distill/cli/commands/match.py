"""Match points between two image files.

Writes matches.json (points in pixels of the files, with confidence) and match.png. Points are pixels of
the image as viewers show it: its EXIF orientation is applied.

Examples:
  python -m distill match src=a.jpg trg=b.jpg points=[[120,80],[60,200]] ckpt=runs/fit/student.safetensors
  python -m distill match matcher=onnx file=student.onnx src=a.jpg trg=b.jpg points=points.json
"""

import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from distill.cli.config import instantiate
from distill.cli.run_folder import RunFolder
from distill.core.checks import check_points
from distill.core.errors import DataError
from distill.data.images import read_image
from distill.evaluation.pictures import match_panel
from distill.matchers.match_images import match_images
from distill.system.environment import choose_device


def run(cfg: DictConfig) -> dict:
    """Matches, writes ``matches.json`` and ``match.png``, and returns what the former holds."""
    src_img, trg_img = (read_image(path) for path in (cfg.src, cfg.trg))
    points = read_points(cfg.points)
    check_points(points, src_img, "points")
    device, matcher = choose_device(cfg.device), instantiate(cfg.matcher)
    if isinstance(matcher, nn.Module):
        matcher = matcher.to(device)
    folder = RunFolder.numbered(cfg)
    answer = match_images(matcher, src_img, trg_img, points, cfg.size, device)
    found = answer.trg_kps[0]
    rows = [
        {"src": _rounded(s), "trg": _rounded(t), "confidence": round(float(c), 4)}
        for s, t, c in zip(points[0], found, answer.confidence[0], strict=True)
    ]
    matches = {
        "src": str(cfg.src),
        "trg": str(cfg.trg),
        "matches": rows,
    }
    folder.write_json("matches.json", matches)
    panel = match_panel(src_img[0], trg_img[0], points[0].numpy(), {"target": found.numpy()}, side=384)
    panel.save(folder / "match.png")
    for row in rows:
        print(f"{row['src']} -> {row['trg']}  confidence {row['confidence']:.2f}")
    print(f"{folder / 'match.png'}")
    return matches


def read_points(points: ListConfig | str) -> Tensor:
    """Returns points, given as a list or as the name of a JSON file that holds one, as (1, N, 2).

    Raises:
        DataError: unless they are pairs of numbers.
    """
    try:
        given = json.loads(Path(points).read_text()) if isinstance(points, str) else OmegaConf.to_container(points)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Expected points as [[x,y],...] or a JSON file but {points} cannot be read ({error})."
        ) from error
    try:
        array = np.array(given, dtype=np.float32)
    except (TypeError, ValueError):
        array = np.zeros(0, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != 2:
        raise DataError(f"Expected points as [[x,y],...], x and y in pixels of the source, but got {given}.")
    return torch.from_numpy(array)[None]


def _rounded(point: Tensor) -> list[float]:
    return [round(float(value), 2) for value in point]
