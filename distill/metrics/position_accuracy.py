"""Position accuracy of followed points, TAP-Vid's (Doersch et al., 2022).

The frame is taken as 256 x 256 px. A point is right within 1, 2, 4, 8 or 16 px, the boundary excluded; visible points of the
frames after the one that it is followed from count. The mean of the five shares is written ``delta_avg``.
"""

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (1, 2, 4, 8, 16)  # px
SIDE = 256  # px


def position_accuracy(
    predicted: NDArray[np.floating], truth: NDArray[np.floating], visible: NDArray[np.bool_], first: NDArray[np.integer]
) -> dict[str, float]:
    """Returns the share of right points of one video in percent, by threshold ("1" to "16"), and "delta_avg".

    Args:
        predicted: (N, T, 2) x, y as fractions of the frame's width and height.
        truth: (N, T, 2), the same.
        visible: (N, T) bool.
        first: (N,) the frame that each point is followed from.

    Returns:
        NaN where no visible point comes after the first.
    """
    counted = visible & (np.arange(visible.shape[1]) > first[:, None])
    distance = np.linalg.norm((predicted[counted] - truth[counted]) * SIDE, axis=-1)
    if not len(distance):
        return {key: float("nan") for key in (*map(str, THRESHOLDS), "delta_avg")}
    shares = {str(limit): 100 * float((distance < limit).mean()) for limit in THRESHOLDS}
    return {**shares, "delta_avg": sum(shares.values()) / len(shares)}
