"""The arrays of a file of predictions: whether they belong together is known before memory is taken for them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.checks import SLACK
from distill.data.npz import Header, NpzFile
from distill.matchers.kept_heatmaps import LEVELS, SIDE, WHOLE

FORMAT = "distill-predictions-1"
LARGEST = 2**30
"""Bytes of all arrays, unpacked: those of three million points with heatmaps."""
LONGEST_TEXT = 1000
"""Letters of a fingerprint or a matcher's name."""
KINDS = {
    "format": "U",
    "matcher": "U",
    "src": "U",
    "trg": "U",
    "count": "i",
    "cells": "i",
    "choice": "i",
    "heatmap": "u",
}
"""Of arrays that hold no floating-point numbers, numpy's letter for what they hold."""
RANGES = {
    "seconds": (0.0, 1e9),
    "confidence": (-SLACK, 1 + SLACK),
    **dict.fromkeys(("src_point", "trg_point", "frame"), (-1e6, 1e6)),
}
"""Of arrays that hold floating-point numbers, the smallest and the largest; points and frames are in sides of an image."""
ADDED = ("choice", "cells", "heatmap", "frame")
"""What files of earlier versions lack."""


def read_arrays(path: str | Path) -> dict[str, NDArray]:
    """Returns the arrays that :meth:`distill.matchers.stored_predictions.Predictions.write` wrote.

    Raises:
        ValueError, KeyError: when they are not those of predictions; see also :data:`distill.data.npz.UNREADABLE`.
    """
    with NpzFile(path) as file:
        headers = file.headers(file.names, LARGEST)
        n_pairs, n_points, n_cells = (_length(headers, name) for name in ("count", "confidence", "heatmap"))
        if not n_pairs:
            raise ValueError("it has no pairs")
        shapes = {"format": (), "matcher": (), "seconds": (), "count": (n_pairs,), "src": (n_pairs,), "trg": (n_pairs,)}
        shapes |= {"src_point": (n_points, 2), "trg_point": (n_points, 2), "confidence": (n_points,)}
        shapes |= {"choice": (n_points, 2), "cells": (n_pairs, 2), "heatmap": (n_cells,), "frame": (n_pairs, 4)}
        there = [name for name in shapes if name in headers or name not in ADDED]
        for name in there:
            _check_header(name, headers[name], shapes[name])
        arrays: dict[str, NDArray] = {"cells": np.zeros((n_pairs, 2), np.int64)}
        arrays |= {name: file.read(name) for name in ("format", "count", "cells") if name in there}
        if str(arrays["format"]) != FORMAT:
            raise ValueError(f"its format is {arrays['format']}, not {FORMAT}")
        _check_counts(arrays["count"], arrays["cells"], n_points, n_cells)
        arrays |= {name: file.read(name) for name in there if name not in arrays}
    arrays.setdefault("choice", np.full((n_points, 2), -1, np.int64))
    arrays.setdefault("heatmap", np.zeros(0, np.uint8))
    arrays.setdefault("frame", np.tile(WHOLE, (n_pairs, 1)))
    _check_values(arrays)
    return arrays


def _length(headers: dict[str, Header], name: str) -> int:
    """Returns the length of a vector; 0 of one that files of earlier versions lack."""
    if name in ADDED and name not in headers:
        return 0
    if len(headers[name].shape) != 1:
        raise ValueError(f"its array {name} has the shape {headers[name].shape} and is no vector")
    return headers[name].shape[0]


def _check_header(name: str, header: Header, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless an array has the right shape and type."""
    kind = KINDS.get(name, "f")
    too_long = kind == "U" and header.dtype.itemsize > 4 * LONGEST_TEXT  # numpy takes 4 bytes a letter
    if header.shape != shape or header.dtype.kind != kind or too_long:
        raise ValueError(f"its array {name} has {header.dtype}, {header.shape}")


def _check_counts(count: NDArray, cells: NDArray, n_points: int, n_cells: int) -> None:
    """Raises a ValueError unless the points of all pairs, and the cells of their heatmaps, are as many as there are."""
    if not ((count > 0) & (count <= n_points)).all() or int(count.sum()) != n_points:
        raise ValueError(f"its array count does not add up to its {n_points} points")
    if not ((cells >= 0) & (cells <= SIDE)).all():
        raise ValueError(f"its array cells has a side above {SIDE}")
    if int((count * cells.prod(1)).sum()) != n_cells:
        raise ValueError(f"its array heatmap has {n_cells} cells and not those of its points")


def _check_values(arrays: dict[str, NDArray]) -> None:
    """Raises a ValueError unless arrays of the right shapes hold values of predictions."""
    for name, (least, most) in RANGES.items():
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"its array {name} holds NaN or infinity")
        if not ((arrays[name] >= least) & (arrays[name] <= most)).all():
            raise ValueError(f"its array {name} holds numbers outside [{least:g}, {most:g}]")
    if arrays["heatmap"].dtype != np.uint8 or (arrays["heatmap"] >= LEVELS).any():
        raise ValueError(f"its array heatmap holds more than {LEVELS} levels")
