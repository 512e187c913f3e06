"""What :mod:`distill.export.runtime` may be asked: images as arrays or Pillow images, and points in the source."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from distill.core.errors import DataError, in_one_line
from distill.data.images import as_rgb

LARGEST_IMAGE = 178_956_970  # px, of an image that is given; the limit of Pillow, see distill.data.images
MAX_POINTS = 10_000  # in one call
Floats = NDArray[np.float32]


def checked_image(image: Any, name: str) -> NDArray[Any]:
    """Returns an image as (H, W, 3), bytes or floats in [0, 1].

    Raises:
        DataError: unless it is (H, W, 3) bytes, floats in [0, 1], or a Pillow image, of at most 179 megapixels, that
            :func:`distill.data.images.as_rgb` takes.
    """
    if isinstance(image, Image.Image):
        if image.width * image.height > LARGEST_IMAGE:
            raise _too_large(name, image.width, image.height)
        image = as_rgb(image, name)
    elif not isinstance(image, np.ndarray):
        raise DataError(
            f"Expected {name} as an array (H, W, 3) or a Pillow image but got {type(image).__name__}; read_image reads one."
        )
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(f"Expected {name} of shape (H, W, 3) but got {array.shape}; convert it to RGB, channels last.")
    if array.shape[0] * array.shape[1] > LARGEST_IMAGE:
        raise _too_large(name, array.shape[1], array.shape[0])
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"Expected {name} as bytes or as floats in [0, 1] but got {array.dtype}; divide by its maximum."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise DataError(f"Expected {name} in [0, 1] but got [{low:.3g}, {high:.3g}]; divide by 255.")
    return array


def _too_large(name: str, width: int, height: int) -> DataError:
    return DataError(
        f"Expected {name} of at most {LARGEST_IMAGE / 1e6:.0f} megapixels but got {width} x {height} px; make it smaller."
    )


def checked_points(points: ArrayLike, size: Floats) -> Floats:
    """Returns points as (N, 2).

    Args:
        points: (N, 2) x, y in pixels of the source; N may be 0.
        size: (2,) width, height of the source, px.

    Raises:
        DataError: unless they are numbers, inside the source, and at most 10,000.
    """
    try:
        given = np.asarray(points)
        if given.dtype.kind not in "iuf":  # neither text nor truth values, which NumPy would convert
            raise TypeError(f"{given.dtype} {given!r:.60}")
        array = given.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of tensors of torch that require gradients
        raise DataError(f"Expected points as (N, 2) numbers but got: {in_one_line(error)}.") from error
    if array.size == 0:
        return np.zeros((0, 2), np.float32)
    if array.ndim != 2 or array.shape[1] != 2:
        raise DataError(f"Expected points of shape (N, 2), x, y in pixels of the source, but got {array.shape}.")
    if len(array) > MAX_POINTS:
        raise DataError(f"Expected at most {MAX_POINTS} points at once but got {len(array)}; ask in several calls.")
    outside = ~((array >= 0) & (array <= size)).all(1)
    if outside.any():
        number = int(outside.argmax())
        x, y = array[number].tolist()
        raise DataError(
            f"Expected every point inside the source of {size[0]:.0f} x {size[1]:.0f} px but point {number} is ({x:.6g}, "
            f"{y:.6g})."
        )
    return array
