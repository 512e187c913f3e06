"""From two images of any size to matches in their own pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.checks import check_images, check_points
from distill.core.errors import DataError
from distill.core.geometry import image_size, resize_points
from distill.core.protocols import Matcher
from distill.core.types import Matches
from distill.system.environment import choose_device

DEFAULT_SIZE = 128
LARGEST_SIZE = 8192  # px; a square of that side takes 800 MB


def match_images(
    matcher: Matcher,
    src_img: Tensor,
    trg_img: Tensor,
    points: Tensor | Sequence[Sequence[float]],
    size: int | None = None,
    device: str | torch.device | None = None,
) -> Matches:
    """Matches points between two images that may differ in size.

    Both images are resized to squares; the ratio of the sides is not kept.

    Args:
        matcher: such as :func:`distill.export.student_file.load_student` returns.
        src_img: (1, 3, H, W) float in [0, 1], such as :func:`distill.data.images.read_image` returns.
        trg_img: (1, 3, H', W'), the same.
        points: (N, 2) or (1, N, 2) x, y in pixels of ``src_img``.
        size: side of the squares, px; without it ``matcher.size``, what a student was trained at, or 128.
        device: where the images are sent; without it the device of a torch matcher's weights, or the CPU.

    Returns:
        On the CPU; ``trg_kps`` (1, N, 2) x, y in pixels of ``trg_img``.

    Raises:
        ConfigError: when there is no such device.
        DataError: unless the images are single ones in [0, 1], all points lie in the source, and ``size`` is 1 to 8192.
    """
    for name, image in (("src_img", src_img), ("trg_img", trg_img)):
        check_images(image, name)
        if len(image) != 1:
            raise DataError(f"Expected one {name} but got {len(image)}; call match_images once for each pair.")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE):
        limits = "of at least 1" if not isinstance(size, int) or size < 1 else f"of 1 to {LARGEST_SIZE}"
        raise DataError(f"Expected size, the side of the squares in px, as a whole number {limits} but got {size!r}.")
    device = device if device is None else choose_device(str(device))
    src_kps = _as_tensor(points)
    src_kps = src_kps[None] if src_kps.ndim == 2 else src_kps
    check_points(src_kps, src_img, "points")
    side = size or getattr(matcher, "size", None) or DEFAULT_SIZE
    src_size, trg_size, square = image_size(src_img), image_size(trg_img), (side, side)
    query = (squash(src_img, side), squash(trg_img, side), resize_points(src_kps, src_size, square))
    if device is None and isinstance(matcher, nn.Module):
        device = next((parameter.device for parameter in matcher.parameters()), None)
    with torch.inference_mode():
        found = matcher(*(value.to(device) for value in query))
    answer = Matches(*(value.cpu() for value in found))
    return answer._replace(trg_kps=resize_points(answer.trg_kps, square, trg_size))


def _as_tensor(points: Tensor | Sequence[Sequence[float]]) -> Tensor:
    wrong = DataError(f"Expected points as numbers (N, 2), x and y in pixels, but got {repr(points)[:100]}.")
    try:
        given = torch.as_tensor(points)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise wrong from error
    if given.dtype == torch.bool or given.is_complex() or given.is_meta:
        raise wrong
    return given.float()


def squash(image: Tensor, size: int) -> Tensor:
    """Returns ``image`` (1, 3, H, W) resized to a square of ``size`` px; the ratio of the sides is not kept."""
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
