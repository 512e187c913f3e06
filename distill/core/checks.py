"""Checks at the boundary: what a matcher may be given."""

import torch
from torch import Tensor

from distill.core.errors import DataError


def check_query(src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> None:
    """Checks the arguments of a matcher.

    Raises:
        DataError: unless both images are (B, 3, H, W), finite and in [0, 1], and the points (B, N, 2) with N > 0,
            finite and inside the source image.
    """
    for name, image in (("src_img", src_img), ("trg_img", trg_img)):
        check_images(image, name)
    if src_img.shape[0] != trg_img.shape[0]:
        raise DataError(f"Expected as many source as target images but got {src_img.shape[0]} and {trg_img.shape[0]}.")
    check_points(src_kps, src_img)


def check_images(images: Tensor, name: str = "image") -> None:
    """Raises a :class:`DataError` unless ``images`` is (B, 3, H, W) float, finite and in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"Expected {name} of shape (B, 3, H, W) but got {tuple(images.shape)}; convert it to RGB.")
    if not images.is_floating_point():
        raise DataError(f"Expected {name} as floats in [0, 1] but got {images.dtype}; divide by 255.")
    if not torch.isfinite(images).all():
        raise DataError(f"Expected {name} to be finite but it holds NaN or infinity; check how it was read.")
    low, high = images.aminmax()
    if low < -1e-3 or high > 1 + 1e-3:
        raise DataError(f"Expected {name} in [0, 1] but got [{low:.3g}, {high:.3g}]; rescale it.")


def check_points(points: Tensor, images: Tensor, name: str = "src_kps") -> None:
    """Raises a :class:`DataError` unless ``points`` is (B, N, 2), N > 0, finite, and inside ``images``."""
    if points.ndim != 3 or points.shape[-1] != 2 or points.shape[0] != images.shape[0]:
        raise DataError(f"Expected {name} of shape ({images.shape[0]}, N, 2) but got {tuple(points.shape)}.")
    if points.shape[1] == 0:
        raise DataError(f"Expected at least one point in {name} but got none; name a point to match.")
    height, width = images.shape[-2:]
    size = points.new_tensor([width, height])
    outside = ~((points >= 0) & (points <= size)).all(-1)
    if outside.any():
        b, n = outside.nonzero()[0].tolist()
        x, y = points[b, n].tolist()
        raise DataError(
            f"Expected every point of {name} inside its image of {width} x {height} px but point {n} of image {b} is "
            f"({x:.6g}, {y:.6g}); points are x, y in pixels."
        )
