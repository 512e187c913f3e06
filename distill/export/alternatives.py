"""The second-best place of a heatmap, such as the other one of two symmetric parts. NumPy only."""

import numpy as np
from numpy.typing import NDArray

LEAST_SHARE = 0.2


def softmax(scores: NDArray, temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns the softmax of all ``scores``, of any shape, divided by ``temperature``."""
    values = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
    return values / values.sum()


def second_best(
    probability: NDArray, radius_cells: float = 3.0, least_share: float = LEAST_SHARE
) -> tuple[float, float, float] | None:
    """Returns x, y and share of the highest local maximum outside of the window around the highest cell.

    Args:
        probability: (h, w), such as :func:`softmax` of a heatmap at the temperature of the student's confidence.
        radius_cells: the windows reach this many cells to each side.
        least_share: places with less than this share are none.

    Returns:
        x, y as fractions of the image's sides, the mean position of the second window without the first, and its
        probability divided by that of the first; None where there is no such place.
    """
    h, w = probability.shape
    rows, columns = np.mgrid[:h, :w]

    def window(cell: int) -> NDArray[np.bool_]:
        return np.maximum(abs(rows - cell // w), abs(columns - cell % w)) <= radius_cells

    inside = window(int(probability.argmax()))
    padded = np.pad(probability, 1, constant_values=-np.inf)
    neighbours = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max((2, 3))
    candidates = np.where(~inside & (probability >= neighbours), probability, -1.0)
    if candidates.max() < 0:
        return None
    second = probability * (window(int(candidates.argmax())) & ~inside)
    mass = second.sum()
    share = float(mass / probability[inside].sum())
    if not share >= least_share:
        return None
    return float((second * (columns + 0.5)).sum() / mass / w), float((second * (rows + 0.5)).sum() / mass / h), share
