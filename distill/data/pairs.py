"""From annotated images to image pairs and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import DataError
from distill.core.geometry import image_size, map_points, relative_points
from distill.core.types import Original, PairBatch

Threshold = Literal["bbox", "img", "kps_bbox"]
NO_VARIATION = (0, 0, 0, 0)
PADDING = {"src_kps": 0, "trg_kps": 0, "kps_mask": False, "kps_id": -1, "trg_all_kps": 0, "trg_all_id": -1}
"""Fields with a row for each point, and what fills them up to the pair with the most."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as a benchmark annotates it, resized to what matchers are given.

    Attributes:
        image: (3, H, W) float in [0, 1].
        keypoints: (K, 2) x, y in pixels of ``image``, one row for each part the category has.
        visible: (K,) bool.
        bbox: (4,) x0, y0, x1, y1 in pixels of ``image``.
        original_size: height, width before resizing.
        category: its name.
        id: for people.
        hash: fingerprint of the resized content.
        content: x0, y0, x1, y1 px, the part of ``image`` that is not padding; None for all of it.
        original_hash: fingerprint of the original image; without it ``hash``, for an image that is never resized.
    """

    image: Tensor
    keypoints: Tensor
    visible: Tensor
    bbox: Tensor
    original_size: tuple[int, int]
    category: str
    id: str
    hash: str
    content: tuple[float, float, float, float] | None = None
    original_hash: str | None = None

    @property
    def original(self) -> Original:
        """What labels of the image are keyed by."""
        return Original(self.original_hash or self.hash, self.original_size)

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1, px: ``content``, or the whole image where that is None."""
        return self.content or (0.0, 0.0, float(self.image.shape[-1]), float(self.image.shape[-2]))


class Query(NamedTuple):
    """What the labels of a pair are looked up by: both original images and the points of the source.

    It is known without decoding the images.

    Attributes:
        src: fingerprint of the original source image.
        trg: of the original target image.
        points: (N, 2) float64 x / W, y / H in the original source image.
    """

    src: str
    trg: str
    points: NDArray[np.float64]

    @classmethod
    def of(cls, pair: PairBatch) -> "Query":
        """Returns the query of a batch of one pair."""
        relative = relative_points(pair.src_kps[0, pair.kps_mask[0]].double(), pair.src_content[0])
        return cls(pair.src_original[0].hash, pair.trg_original[0].hash, relative.numpy())


class ImageView(NamedTuple):
    """An original image in a square, without its annotation.

    Attributes:
        image: (3, S, S) float in [0, 1].
        hash: fingerprint of the resized content.
        content: x0, y0, x1, y1 px, the part of the square that the image fills; None where that is all.
    """

    image: Tensor
    hash: str
    content: tuple[float, float, float, float] | None = None


class Scoring(NamedTuple):
    """The pixels and the tolerance of a pair that is not scored in the target's original pixels.

    Attributes:
        size: height, width of the target, resized, that scores are taken in.
        pck_threshold: tolerance base in its pixels.
    """

    size: tuple[int, int]
    pck_threshold: float


def make_pair(
    src: AnnotatedImage,
    trg: AnnotatedImage,
    threshold: Threshold,
    variation: tuple[int, int, int, int] = NO_VARIATION,
    scoring: Scoring | None = None,
) -> PairBatch:
    """Returns a batch of one pair, with the points that are visible in both images.

    Args:
        src: source image.
        trg: target image, of the same category.
        threshold: what PCK's tolerance is a fraction of, in original target pixels: the longer side of the
            target's box ("bbox"), of the image ("img"), or of the box around the target's visible keypoints.
        variation: SPair-71k's four flags.
        scoring: another way of scoring, which then goes before ``threshold``.
    """
    size, base = scoring or (trg.original_size, _tolerance_base(trg, threshold))
    shared = src.visible & trg.visible
    n = int(shared.sum())
    return PairBatch(
        src_img=src.image[None],
        trg_img=trg.image[None],
        src_kps=src.keypoints[shared][None].float(),
        trg_kps=trg.keypoints[shared][None].float(),
        kps_mask=torch.ones(1, n, dtype=torch.bool),
        kps_id=shared.nonzero()[:, 0][None],
        src_bbox=src.bbox[None].float(),
        trg_bbox=trg.bbox[None].float(),
        trg_all_kps=trg.keypoints[trg.visible][None].float(),
        trg_all_id=trg.visible.nonzero()[:, 0][None],
        src_content=torch.tensor([src.frame]),
        trg_content=torch.tensor([trg.frame]),
        trg_size=torch.tensor([size]),
        pck_threshold=torch.tensor([base]),
        variation=torch.tensor([variation]),
        category=[trg.category],
        src_id=[src.id],
        trg_id=[trg.id],
        src_hash=[src.hash],
        trg_hash=[trg.hash],
        src_original=[src.original],
        trg_original=[trg.original],
    )


def _tolerance_base(image: AnnotatedImage, threshold: Threshold) -> float:
    height, width = image.original_size
    x0, y0, x1, y1 = image.frame
    scale = torch.tensor([width / (x1 - x0), height / (y1 - y0)])
    if threshold == "img":
        return float(max(height, width))
    if threshold == "bbox":
        return float(((image.bbox[2:] - image.bbox[:2]) * scale).max())
    points = image.keypoints[image.visible] * scale
    return float((points.amax(0) - points.amin(0)).max()) if len(points) else 0.0


def collate_pairs(pairs: Sequence[PairBatch]) -> PairBatch:
    """Concatenates batches of pairs, padding the points to the largest number among them.

    Raises:
        DataError: when the images differ in size.
    """
    sizes = {tuple(image.shape[-2:]) for pair in pairs for image in (pair.src_img, pair.trg_img)}
    if len(sizes) > 1:
        raise DataError(f"Expected images of one size in a batch but got {sorted(sizes)}; set data.size.")

    def joined(name: str) -> Tensor | list:
        """Returns the field ``name`` of all pairs: lists in succession, tensors padded along the points."""
        values = [getattr(pair, name) for pair in pairs]
        if isinstance(values[0], list):
            return [entry for value in values for entry in value]
        if name in PADDING:
            most = max(value.shape[1] for value in values)
            values = [
                F.pad(value, (0, 0) * (value.ndim - 2) + (0, most - value.shape[1]), value=PADDING[name])
                for value in values
            ]
        return torch.cat(values)

    return PairBatch(**{name: joined(name) for name in PairBatch._fields})  # type: ignore[arg-type]


def select_pairs(pairs: PairBatch, rows: Sequence[int]) -> PairBatch:
    """Returns the pairs at ``rows``, in that order."""

    def chosen(value: Tensor | list) -> Tensor | list:
        """Returns the entries of one field at ``rows``."""
        return [value[row] for row in rows] if isinstance(value, list) else value[list(rows)]

    return PairBatch(*(chosen(value) for value in pairs))  # type: ignore[arg-type]


def with_views(pair: PairBatch, src: ImageView, trg: ImageView) -> PairBatch:
    """Returns a batch of one pair with its images at another size, and all points and boxes moved along."""
    if (src.hash, trg.hash) == (pair.src_hash[0], pair.trg_hash[0]):
        return pair

    def moved(points: Tensor, content: Tensor, view: ImageView) -> Tensor:
        """Returns points (1, N, 2) of the old image, where the photograph fills ``content``, in pixels of the view."""
        return map_points(points.reshape(1, -1, 2), content, _frame(view)).reshape(points.shape)

    return pair._replace(
        src_img=src.image[None],
        trg_img=trg.image[None],
        src_kps=moved(pair.src_kps, pair.src_content, src),
        trg_kps=moved(pair.trg_kps, pair.trg_content, trg),
        src_bbox=moved(pair.src_bbox, pair.src_content, src),
        trg_bbox=moved(pair.trg_bbox, pair.trg_content, trg),
        trg_all_kps=moved(pair.trg_all_kps, pair.trg_content, trg),
        src_content=_frame(src),
        trg_content=_frame(trg),
        src_hash=[src.hash],
        trg_hash=[trg.hash],
    )


def _frame(view: ImageView) -> Tensor:
    """Returns (1, 4) the box that the original fills in a view, px."""
    return torch.tensor([view.content or (0.0, 0.0, view.image.shape[-1], view.image.shape[-2])])


def exchanged(pairs: PairBatch, points: Tensor) -> PairBatch:
    """Returns the pairs with source and target exchanged, and ``points`` (B, N, 2), x, y px of the targets, as queries.

    Points outside the image are moved to its border. The answers' truth is unknown, NaN; what else is said of the former
    targets' points, and the tolerance, stay as they are.
    """
    names = ("img", "bbox", "content", "id", "hash", "original")
    sides = {
        f"{new}_{name}": getattr(pairs, f"{old}_{name}")
        for name in names
        for new, old in (("src", "trg"), ("trg", "src"))
    }
    height, width = image_size(pairs.trg_img)
    inside = torch.minimum(points.clamp_min(0), points.new_tensor([width, height]))
    inside = inside.where(pairs.kps_mask[..., None], points.new_zeros(()))
    return pairs._replace(**sides, src_kps=inside, trg_kps=torch.full_like(points, torch.nan))


def to_original(points: Tensor, pairs: PairBatch) -> Tensor:
    """Maps points (B, N, 2), x, y in pixels of ``pairs.trg_img``, to the pixels that scores are taken in."""
    return map_points(points, pairs.trg_content, _whole(pairs.trg_size))


def from_original(points: Tensor, pairs: PairBatch) -> Tensor:
    """Maps points (B, N, 2), x, y in the pixels that scores are taken in, to pixels of ``pairs.trg_img``."""
    return map_points(points, _whole(pairs.trg_size), pairs.trg_content)


def _whole(size: Tensor) -> Tensor:
    """Returns (B, 4) the boxes of whole images of ``size`` (B, 2) height, width."""
    return torch.cat([torch.zeros_like(size), size.flip(-1)], dim=-1)


def to_device(pairs: PairBatch, device: str | torch.device) -> PairBatch:
    """Returns ``pairs`` with all tensors on ``device``."""
    return PairBatch(*(value.to(device) if isinstance(value, Tensor) else value for value in pairs))  # type: ignore[arg-type]
