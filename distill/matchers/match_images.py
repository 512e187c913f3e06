"""From two images of any size to matches in their own pixels."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.checks import check_images, check_points
from distill.core.errors import DataError
from distill.core.geometry import image_size, map_points, resize_images
from distill.core.heatmaps import recover
from distill.core.numbers import is_whole
from distill.core.protocols import Matcher, PairMatcher, match_query
from distill.core.squares import PADDING_GREY, content_box
from distill.core.types import Matches
from distill.data.photographs import check_resize
from distill.system.environment import choose_device

DEFAULT_SIZE = 128
LARGEST_SIZE = 8192  # px; a square of that side takes 800 MB


def match_images(
    matcher: Matcher,
    src_img: Tensor,
    trg_img: Tensor,
    points: Tensor | ArrayLike,
    size: int | None = None,
    device: str | torch.device | None = None,
    resize: str | None = None,
) -> Matches:
    """Matches points between two images that may differ in size.

    Both images are brought to squares, as the images were that the matcher was trained on.

    Args:
        matcher: such as :func:`distill.export.student_file.load_student` returns.
        src_img: (1, 3, H, W) float in [0, 1], such as :func:`distill.data.images.read_image` returns.
        trg_img: (1, 3, H', W'), the same.
        points: (N, 2) or (1, N, 2) x, y in pixels of ``src_img``.
        size: side of the squares, px; without it ``matcher.size``, what a student was trained at, or 128.
        device: where the images are sent; without it the device of a torch matcher's weights, or the CPU.
        resize: "squash", which does not keep the ratio of the sides, or "letterbox", which does and pads with grey; without it
            ``matcher.resize``, what a student was trained on, or "squash".

    Returns:
        On the CPU; ``trg_kps`` (1, N, 2) x, y in pixels of ``trg_img``, and ``heatmap`` over ``trg_img``. Answers in the padding
        of a letterboxed target are moved to its border.

    Raises:
        ConfigError: when there is no such device, or way to resize, or the matcher answers pairs of a data set only.
        DataError: unless the images are single ones in [0, 1], all points lie in the source, and ``size`` is 1 to 8192; and when
            the answer has other shapes than the contract's.
    """
    for name, image in (("src_img", src_img), ("trg_img", trg_img)):
        check_images(image, name)
        if image.is_meta:
            raise DataError(
                f"Expected {name} with pixels but got a tensor of shapes alone, on the device meta; read the image."
            )
        if len(image) != 1:
            raise DataError(f"Expected one {name} but got {len(image)}; call match_images once for each pair.")
    if size is not None and (not is_whole(size) or not 1 <= size <= LARGEST_SIZE):
        limits = "of at least 1" if not isinstance(size, int) or size < 1 else f"of 1 to {LARGEST_SIZE}"
        raise DataError(f"Expected size, the side of the squares in px, as a whole number {limits} but got {size!r}.")
    check_resize(resize)
    device = device if device is None else choose_device(str(device))
    src_kps = _as_tensor(points)
    src_kps = src_kps[None] if src_kps.ndim == 2 else src_kps
    check_points(src_kps, src_img, "points")
    side, resize = square_for(matcher, size, resize)
    (src_square, src_box), (trg_square, trg_box) = (in_square(image, side, resize) for image in (src_img, trg_img))
    query = (src_square, trg_square, map_points(src_kps, _whole(src_img), src_box))
    if device is None and isinstance(matcher, nn.Module):
        device = next((parameter.device for parameter in matcher.parameters()), None)
    with torch.inference_mode():
        found = match_query(matcher, *(value.to(device) for value in query))
    answer = Matches(*(value.cpu() for value in found))
    places = map_points(answer.trg_kps, trg_box, _whole(trg_img))
    if resize == "squash":
        return answer._replace(trg_kps=places)
    whole = torch.tensor([[0.0, 0.0, side, side]])
    count = answer.heatmap.shape[1]
    heatmap = recover(answer.heatmap[0].float(), whole.expand(count, 4), trg_box.expand(count, 4))
    height, width = image_size(trg_img)
    inside = torch.minimum(places.clamp_min(0), places.new_tensor([width, height]))
    return answer._replace(trg_kps=inside, heatmap=heatmap[None])


def _as_tensor(points: Tensor | ArrayLike) -> Tensor:
    shown = " ".join(repr(points).split())[:100]
    wrong = DataError(f"Expected points as numbers (N, 2), x and y in pixels, but got {shown}.")
    if isinstance(points, Tensor):
        if points.dtype == torch.bool or points.is_complex() or points.is_meta or points.layout != torch.strided:
            raise wrong
        return points.float()
    try:
        array = np.array(points)  # torch takes neither reversed arrays nor those of the other order of bytes
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise wrong from error
    if array.dtype.kind not in "iuf":  # neither text nor truth values, which NumPy would convert
        raise wrong
    return torch.from_numpy(array.astype(np.float32))


def square_for(matcher: Matcher | PairMatcher, size: int | None, resize: str | None) -> tuple[int, str]:
    """Returns side, px, and way of resizing of the squares that a matcher is given: as asked for, or as it was trained on."""
    return (
        size or getattr(matcher, "size", None) or DEFAULT_SIZE,
        resize or getattr(matcher, "resize", None) or "squash",
    )


def in_square(image: Tensor, side: int, resize: str) -> tuple[Tensor, Tensor]:
    """Returns an image in a square, (1, 3, side, side), and the place (1, 4) of its content there, x0, y0, x1, y1 px.

    Args:
        image: (1, 3, H, W) in [0, 1].
        side: of the square, px.
        resize: "squash" or "letterbox".
    """
    x0, y0, x1, y1 = content_box(image_size(image), side, resize)
    content = resize_images(image, (y1 - y0, x1 - x0))
    square = F.pad(content, (x0, side - x1, y0, side - y1), value=PADDING_GREY / 255)
    return square, torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)


def _whole(image: Tensor) -> Tensor:
    height, width = image_size(image)
    return torch.tensor([[0.0, 0.0, width, height]])
