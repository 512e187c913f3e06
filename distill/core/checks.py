"""Checks at the boundary: what a matcher may be given, and what it may answer.

Decided for all matchers: images are torch tensors (B, 3, H, W) of floats in [0, 1]; arrays, pictures, bytes and single images
without a batch axis are refused with the expression that converts them. Points are (B, N, 2), floats or whole numbers,
inside the source image, its border included.
"""

from typing import Any

import torch
from torch import Tensor

from distill.core.errors import DataError
from distill.core.precision import in_single
from distill.core.types import Matches

SLACK = 1e-3  # how far resizing may leave [0, 1]


def check_query(
    src_img: Tensor, trg_img: Tensor, src_kps: Tensor, min_points: int = 1, same_size: bool = False
) -> None:
    """Checks the arguments of a matcher.

    Args:
        src_img: the sources.
        trg_img: the targets.
        src_kps: the points.
        min_points: the smallest N that the matcher answers, 0 or 1.
        same_size: whether sources and targets must have one size.

    Raises:
        DataError: unless both images are (B, 3, H, W), finite and in [0, 1], and the points (B, N, 2), finite and inside
            the source image.
    """
    for name, image in (("src_img", src_img), ("trg_img", trg_img)):
        check_images(image, name)
    if src_img.shape[0] != trg_img.shape[0]:
        raise DataError(f"Expected as many source as target images but got {src_img.shape[0]} and {trg_img.shape[0]}.")
    if same_size and src_img.shape != trg_img.shape:
        sizes = " and ".join(f"{image.shape[-2]} x {image.shape[-1]}" for image in (src_img, trg_img))
        raise DataError(
            f"Expected sources and targets of one size but got {sizes} px; resize one, or call distill.match_images, "
            "which takes any two."
        )
    check_points(src_kps, src_img, min_points=min_points)


def check_images(images: Tensor, name: str = "image") -> None:
    """Raises a :class:`DataError` unless ``images`` is a tensor (B, 3, H, W) of floats, finite and in [0, 1]."""
    if not isinstance(images, Tensor):
        kind = f"{type(images).__module__}.{type(images).__name__}"
        raise DataError(
            f"Expected {name} to be a torch tensor (B, 3, H, W) but got {kind}; distill.read_image(path) reads one, and "
            "torch.from_numpy(array).permute(2, 0, 1)[None] / 255 makes one of an array (H, W, 3) of bytes."
        )
    if images.layout != torch.strided:
        raise DataError(f"Expected {name} as a dense tensor but got {images.layout}; write {name}.to_dense().")
    shape = tuple(images.shape)
    if images.ndim == 3 and shape[0] == 3:
        raise DataError(f"Expected {name} of shape (B, 3, H, W) but got {shape}; add a batch axis: {name}[None].")
    if images.ndim in (3, 4) and shape[-1] == 3 and shape[-3] != 3:
        raise DataError(f"Expected {name} of shape (B, 3, H, W) but got {shape}; move the channels: movedim(-1, -3).")
    if images.ndim != 4 or shape[1] != 3:
        raise DataError(f"Expected {name} of shape (B, 3, H, W) but got {shape}; convert it to RGB.")
    if 0 in shape:
        raise DataError(f"Expected {name} to hold pixels but its shape is {shape}; give at least one image.")
    if not images.is_floating_point():
        raise DataError(f"Expected {name} as floats in [0, 1] but got {images.dtype}; divide by 255.")
    if images.is_meta:  # shapes without values, as when a network is only traced
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()  # either is NaN where there is one
    if not (low > -float("inf") and high < float("inf")):
        raise DataError(f"Expected {name} to be finite but it holds NaN or infinity; check how it was read.")
    if low < -SLACK or high > 1 + SLACK:
        hint = "divide by 255" if low >= 0 and 1 < high <= 255 else "rescale it; the student normalises by itself"
        raise DataError(f"Expected {name} in [0, 1] but got [{low:.3g}, {high:.3g}]; {hint}.")


def check_points(points: Tensor, images: Tensor, name: str = "src_kps", min_points: int = 1) -> None:
    """Raises a :class:`DataError` unless ``points`` is (B, N, 2), finite, and inside ``images``.

    Args:
        points: x, y, px; floats or whole numbers.
        images: (B, 3, H, W).
        name: of the points, for messages.
        min_points: the smallest N.
    """
    if not isinstance(points, Tensor):
        raise DataError(
            f"Expected {name} to be a torch tensor (B, N, 2) but got {type(points).__module__}.{type(points).__name__}; "
            f"write torch.tensor({name}, dtype=torch.float32)."
        )
    if points.ndim == 2 and points.shape[-1] == 2:
        raise DataError(
            f"Expected {name} of shape ({len(images)}, N, 2) but got {tuple(points.shape)}; add a batch axis: {name}[None]."
        )
    if points.ndim != 3 or points.shape[-1] != 2 or points.shape[0] != images.shape[0]:
        raise DataError(f"Expected {name} of shape ({images.shape[0]}, N, 2) but got {tuple(points.shape)}.")
    if points.is_complex() or points.dtype == torch.bool:
        raise DataError(f"Expected {name} as numbers but got {points.dtype}; give x, y in pixels.")
    if points.shape[1] < min_points:
        raise DataError(f"Expected at least one point in {name} but got none; name a point to match.")
    if points.is_meta:
        return
    points = in_single(points)  # small whole numbers do not hold the size of an image
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


def check_answer(answer: Any, src_kps: Tensor, who: str) -> Matches:
    """Returns what a matcher answered when its shapes are those of the contract. No value is read.

    Args:
        answer: to ``src_kps``.
        src_kps: (B, N, 2) that were asked for.
        who: answered, for messages.

    Raises:
        DataError: unless it is :class:`Matches` of tensors (B, N, 2), (B, N) and (B, N, h, w).
    """
    if not isinstance(answer, Matches) or not all(isinstance(value, Tensor) for value in answer):
        got = type(answer).__name__
        if isinstance(answer, Matches):
            got += f" of {', '.join(type(value).__name__ for value in answer)}"
        raise DataError(
            f"Expected {who} to return Matches(trg_kps, confidence, heatmap) of torch tensors but got {got}; "
            "distill.Matches makes one."
        )
    b, n = src_kps.shape[:2]
    points, confidence, heatmap = (tuple(value.shape) for value in answer)
    for name, wanted, found, is_right in (
        ("trg_kps", (b, n, 2), points, points == (b, n, 2)),
        ("confidence", (b, n), confidence, confidence == (b, n)),
        ("heatmap", "(B, N, h, w)", heatmap, len(heatmap) == 4 and heatmap[:2] == (b, n)),
    ):
        if not is_right:
            raise DataError(
                f"Expected {name} {wanted} of {who} for {b} pairs with {n} points each but got {found}; return it so."
            )
    return answer


def check_confidence(confidence: Tensor, who: str) -> None:
    """Raises a :class:`DataError` unless all values of ``confidence``, of any shape, lie in [0, 1]; NaN does not.

    Args:
        confidence: which weighs labels in the losses, and ranks answers.
        who: answered, for messages.
    """
    if not confidence.numel():
        return
    low, high = torch.stack(torch.aminmax(confidence.float())).tolist()  # either is NaN where there is one
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise DataError(
            f"Expected confidences in [0, 1] of {who} but got {low:.3g} to {high:.3g}; scale them in the matcher."
        )


def check_label(answer: Matches, mask: Tensor, who: str) -> None:
    """Checks the values of an answer that is to be stored as a label.

    Args:
        answer: of the shapes of the contract.
        mask: (B, N) bool, the points that count.
        who: answered, for messages.

    Raises:
        DataError: unless points are finite, confidences in [0, 1], and heatmaps finite, with cells, and not negative everywhere.
    """
    if not mask.any():
        return
    points, confidence, heatmap = (value.detach()[mask.to(value.device)] for value in answer)
    if not torch.isfinite(points).all():
        raise DataError(
            f"Expected finite trg_kps of {who} but got NaN or infinity; answer with a confidence of 0 instead."
        )
    if not heatmap.numel():
        raise DataError(f"Expected a heatmap with cells of {who} but got {tuple(heatmap.shape)}; return at least one.")
    check_confidence(confidence, who)
    best = heatmap.float().flatten(1).amax(1)  # the losses leave out what is negative, such as of cosines
    if not (torch.isfinite(heatmap).all() and (best >= -SLACK).all()):
        low, high = torch.stack(torch.aminmax(heatmap.float())).tolist()
        raise DataError(
            f"Expected a finite heatmap of {who} whose best cell is at least 0 but got [{low:.3g}, {high:.3g}]; exp or softmax "
            "makes one of scores."
        )
