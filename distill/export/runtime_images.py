"""Between images of any size and the squares of an exported student: pixels, points and heatmaps. NumPy and Pillow only."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.core.squares import PADDING_GREY, content_box
from distill.export.runtime_query import Floats


class Square(NamedTuple):
    """The square that images are brought to.

    Attributes:
        side: px.
        resize: "squash", which does not keep the ratio of the sides, or "letterbox", which does, and pads with grey.
    """

    side: int
    resize: str

    def pixels(self, image: NDArray[Any]) -> Floats:
        """Returns (1, 3, side, side) floats of an image (H, W, 3), resized as torch's antialiased bilinear interpolation does.

        One channel after the other becomes floats, which take four times the memory of bytes.
        """
        x0, y0, x1, y1 = content_box((image.shape[0], image.shape[1]), self.side, self.resize)
        square = np.full((1, 3, self.side, self.side), np.float32(PADDING_GREY) / np.float32(255), np.float32)
        for number in range(3):
            channel = image[..., number].astype(np.float32)
            if image.dtype == np.uint8:
                channel /= np.float32(255)
            if channel.shape != (y1 - y0, x1 - x0):
                resized = Image.fromarray(channel).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
                channel = np.asarray(resized).clip(0, 1)
            square[0, number, y0:y1, x0:x1] = channel
        return square

    def inside(self, points: Floats, size: Floats) -> Floats:
        """Returns points (N, 2), x, y px, of an image of ``size``, width and height, in px of the square."""
        corner, extent = self._place(size)
        return (points * (extent / size) + corner).astype(np.float32)

    def outside(self, points: Floats, size: Floats) -> Floats:
        """Returns points (N, 2) of the square in px of the image; those on the padding are moved to the image's border."""
        corner, extent = self._place(size)
        found = ((points - corner) * (size / extent)).astype(np.float32)
        return found if self.resize == "squash" else found.clip(0, size)

    def heatmaps(self, heatmaps: Floats, size: Floats) -> Floats:
        """Returns heatmaps (N, h, w) over the square as ones over the image: as many cells, read bilinearly."""
        if self.resize == "squash":
            return heatmaps
        corner, extent = self._place(size)
        columns, rows = (
            _readings(heatmaps.shape[2 - axis], float(corner[axis] / self.side), float(extent[axis] / self.side))
            for axis in (0, 1)
        )
        return (rows @ heatmaps @ columns.T).astype(np.float32)

    def _place(self, size: Floats) -> tuple[Floats, Floats]:
        """Returns the top-left corner x, y and the width, height, px, of an image of ``size`` in the square."""
        width, height = (int(length) for length in size)
        box = np.array(content_box((height, width), self.side, self.resize), np.float32)
        return box[:2], box[2:] - box[:2]


def _readings(cells: int, start: float, extent: float) -> Floats:
    """Returns (cells, cells): weights of a line of values at as many places of its part from ``start`` on, in fractions of it."""
    places = (start + (np.arange(cells) + 0.5) / cells * extent) * cells - 0.5
    distances = np.abs(places.clip(0, cells - 1)[:, None] - np.arange(cells))
    return (1 - distances).clip(0).astype(np.float32)
