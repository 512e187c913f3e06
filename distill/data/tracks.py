"""Points followed through a video by people or a simulator: an ``.npz`` file with the arrays of TAP-Vid.

| array | shape | content |
|---|---|---|
| points | (N, T, 2) | x, y of N points in T frames, as fractions of the frame's width and height |
| occluded | (N, T) | bool, where a point is hidden, and its place is not known |

TAP-Vid itself (Doersch et al., 2022) is published as pickles, which may run code and are never read.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError, in_one_line
from distill.data.npz import UNREADABLE, NpzFile

LARGEST_BYTES = 100 * 2**20  # bytes of both arrays, unpacked

MARGIN = 0.5  # of a frame's side that annotators may click beyond its border


class Tracks(NamedTuple):
    """N points in T frames.

    Attributes:
        points: (N, T, 2) x, y as fractions of the frame's width and height.
        visible: (N, T) bool.
    """

    points: NDArray[np.float64]
    visible: NDArray[np.bool_]

    def first(self) -> NDArray[np.int64]:
        """Returns (N,) the first frame that each point is visible in."""
        return self.visible.argmax(1)


def read_tracks(path: str | Path) -> Tracks:
    """Reads tracks; those that are never visible are left out.

    Raises:
        DataError: when the file is a pickle, missing, damaged or too large, its arrays are not those above, no point is
            visible, or a visible one lies far outside of the frame, as places in px do.
    """
    if Path(path).suffix.lower() != ".npz":
        raise DataError(
            f"Expected tracks as an .npz file but got {path}; pickles run code and are not read, convert one as "
            "docs/learn/photographs.md shows."
        )
    try:
        with NpzFile(path) as file:
            (shape, dtype), (other_shape, other_dtype) = file.headers(("points", "occluded"), LARGEST_BYTES).values()
            fits = len(shape) == 3 and shape[2] == 2 and other_shape == shape[:2] and 0 not in shape
            if not (fits and np.issubdtype(dtype, np.floating) and other_dtype == np.bool_):
                raise DataError(
                    f"Expected points (N, T, 2) floats and occluded (N, T) bool in {path} but got {shape} {dtype} and "
                    f"{other_shape} {other_dtype}; write it again."
                )
            points, occluded = file.read("points"), file.read("occluded")
    except UNREADABLE as error:
        reason = in_one_line(error)
        raise DataError(f"Expected tracks with points and occluded in {path} but {reason}; write it again.") from error
    seen = ~occluded.all(1)
    points, visible = points[seen].astype(np.float64), ~occluded[seen]
    if not len(points) or not np.isfinite(points[visible]).all():
        raise DataError(f"Expected finite places of visible points in {path} but got none, or NaN; write it again.")
    farthest = float(np.abs(points[visible] - 0.5).max())
    if farthest > 0.5 + MARGIN:
        raise DataError(
            f"Expected places in {path} as fractions of the frame's width and height, from 0 to 1, but one is {farthest:.4g} from the "
            "middle; divide places in px by the sides."
        )
    return Tracks(points, visible)
