"""The pairs that a report lets one look at: pictures, points, answers and small heatmaps, as plain values for JSON."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from distill.core.geometry import relative_points
from distill.core.protocols import Benchmark
from distill.core.types import Original, PairBatch
from distill.data.pairs import to_original
from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.evaluate import Evaluation, with_truth

LIMIT = 17_000_000
"""Bytes of pictures and heatmaps that a report may hold."""
SIDE = 256
"""Longer side of the pictures, px, at most."""
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
"""The levels of a heatmap's cells, one character each."""


def browsed_pairs(comparison: Comparison, benchmark: Benchmark, most: int) -> dict[str, Any]:
    """Returns up to ``most`` of the evaluated pairs, evenly spread, as far as they fit into :data:`LIMIT`.

    All points are fractions of the original image, x / W and y / H.

    Returns:
        "images", JPEG files as data URLs, and "pairs"; see :func:`_pair`.
    """
    n_pairs = len(comparison.first.pairs)
    places = np.linspace(0, n_pairs - 1, min(most, n_pairs)).round().astype(int).tolist()
    pictures, used = _Pictures(), 0
    pairs: list[dict[str, Any]] = []
    for place in places:
        pair = _pair(comparison, benchmark[comparison.first.pairs[place]], place, pictures)
        used += sum(len(text) for answer in pair["answers"] for text in answer["heat"])
        if pairs and used + pictures.size > LIMIT:
            break
        pairs.append(pair)
    return {"images": list(pictures.urls.values()), "pairs": pairs}


class _Pictures:
    """Pictures of original images, each once."""

    def __init__(self) -> None:
        self.urls: dict[Original, str] = {}
        self.size = 0

    def number(self, image: Tensor, content: Tensor, original: Original) -> int:
        """Returns the number of the picture that shows the ``content`` (4,) of ``image`` (3, H, W)."""
        if original not in self.urls:
            x0, y0, x1, y1 = (int(edge) for edge in content.round())
            picture = to_pil_image(image[:, y0:y1, x0:x1].detach().cpu().clamp(0, 1))
            factor = min(SIDE, max(picture.size)) / max(original.size)
            size = (max(1, round(original.size[1] * factor)), max(1, round(original.size[0] * factor)))
            buffer = io.BytesIO()
            picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=78)
            self.urls[original] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
            self.size += len(self.urls[original])
        return list(self.urls).index(original)


def _pair(comparison: Comparison, pair: PairBatch, place: int, pictures: _Pictures) -> dict[str, Any]:
    """Returns what is shown of one pair.

    Returns:
        "number" in the data set, "category", "srcId", "trgId"; "src" and "trg", numbers of pictures; "points" and "truth" (null
        without annotation), x and y; "others", further annotated points of the target; "tolerance", the tolerance base as a
        fraction of the target's width and height; "answers", one for each matcher.
    """
    mask = (with_truth(pair) if comparison.scored else pair.kps_mask)[0]
    height, width = pair.trg_size[0].tolist()
    base = comparison.first.thresholds[place]
    size = np.array([width, height])
    known = to_original(pair.trg_all_kps, pair)[0].numpy() / size
    is_known = (pair.trg_all_id[0] >= 0).numpy() & np.isfinite(known).all(-1)
    return {
        "number": comparison.first.pairs[place],
        "category": pair.category[0],
        "srcId": pair.src_id[0],
        "trgId": pair.trg_id[0],
        "src": pictures.number(pair.src_img[0], pair.src_content[0], pair.src_original[0]),
        "trg": pictures.number(pair.trg_img[0], pair.trg_content[0], pair.trg_original[0]),
        "points": _fractions(pair.src_kps[0, mask], pair.src_content[0]),
        "truth": _rounded(comparison.first.truth[place] / size) if comparison.scored else None,
        "others": _rounded(known[is_known]) if comparison.scored else [],
        "tolerance": [round(base / width, 4), round(base / height, 4)],
        "answers": [_answer(evaluation, place, size) for evaluation in comparison.evaluations.values()],
    }


def _answer(evaluation: Evaluation, place: int, size: NDArray) -> dict[str, Any]:
    """Returns one matcher's answers.

    Returns:
        "points", "confidence", "right" (0 or 1 each; null without truth), and "heat" of "cells" h, w, which lie in the "frame":
        left, top, width, height.
    """
    maps, frame = evaluation.heatmaps[place]
    tells = maps.shape[1] * maps.shape[2] > 1
    right = evaluation.right(HEADLINE)[place].astype(int).tolist() if evaluation.scored else None
    return {
        "points": _rounded(evaluation.predictions[place] / size),
        "confidence": evaluation.confidence[place].round(3).tolist(),
        "right": right,
        "cells": list(maps.shape[1:]),
        "heat": ["".join(LETTERS[level] for level in cells.ravel()) for cells in maps] if tells else [],
        "frame": frame.round(4).tolist(),
    }


def _fractions(points: Tensor, content: Tensor) -> list[list[float]]:
    return _rounded(relative_points(points.double(), content).numpy())


def _rounded(points: NDArray) -> list[list[float]]:
    return np.asarray(points, float).round(4).tolist()
