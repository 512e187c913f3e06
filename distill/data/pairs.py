"""From annotated images to image pairs and batches of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DataError
from distill.types import PairBatch

Threshold = Literal["bbox", "img", "kps_bbox"]
NO_VARIATION = (0, 0, 0, 0)


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
        hash: fingerprint of the content; labels are keyed by it.
    """

    image: Tensor
    keypoints: Tensor
    visible: Tensor
    bbox: Tensor
    original_size: tuple[int, int]
    category: str
    id: str
    hash: str


def make_pair(
    src: AnnotatedImage,
    trg: AnnotatedImage,
    threshold: Threshold,
    variation: tuple[int, int, int, int] = NO_VARIATION,
) -> PairBatch:
    """Returns a batch of one pair, with the points that are visible in both images.

    Args:
        src: source image.
        trg: target image, of the same category.
        threshold: what PCK's tolerance is a fraction of, always in original target pixels: the longer side of the
            target's box ("bbox"), of the image ("img"), or of the box around the target's visible keypoints.
        variation: SPair-71k's four flags.
    """
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
        trg_size=torch.tensor([trg.original_size]),
        pck_threshold=torch.tensor([_tolerance_base(trg, threshold)]),
        variation=torch.tensor([variation]),
        category=[trg.category],
        src_id=[src.id],
        trg_id=[trg.id],
        src_hash=[src.hash],
        trg_hash=[trg.hash],
    )


def _tolerance_base(image: AnnotatedImage, threshold: Threshold) -> float:
    height, width = image.original_size
    scale = torch.tensor([width / image.image.shape[-1], height / image.image.shape[-2]])
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
    most = max(pair.kps_mask.shape[1] for pair in pairs)

    def joined(name: str) -> Tensor | list[str]:
        values = [getattr(pair, name) for pair in pairs]
        if isinstance(values[0], list):
            return [text for value in values for text in value]
        if name in ("src_kps", "trg_kps"):
            values = [F.pad(value, (0, 0, 0, most - value.shape[1])) for value in values]
        if name in ("kps_mask", "kps_id"):
            fill = False if name == "kps_mask" else -1
            values = [F.pad(value, (0, most - value.shape[1]), value=fill) for value in values]
        return torch.cat(values)

    return PairBatch(**{name: joined(name) for name in PairBatch._fields})  # type: ignore[arg-type]


def select_pairs(pairs: PairBatch, rows: Sequence[int]) -> PairBatch:
    """Returns the pairs at ``rows``, in that order."""

    def chosen(value: Tensor | list[str]) -> Tensor | list[str]:
        return [value[row] for row in rows] if isinstance(value, list) else value[list(rows)]

    return PairBatch(*(chosen(value) for value in pairs))  # type: ignore[arg-type]


def to_original(points: Tensor, pairs: PairBatch) -> Tensor:
    """Maps points (B, N, 2), x, y in pixels of ``pairs.trg_img``, to pixels of the original target images."""
    height, width = pairs.trg_img.shape[-2:]
    return points * (pairs.trg_size.flip(-1).to(points) / points.new_tensor([width, height]))[:, None]


def sample_pairs(categories: Sequence[str], n_pairs: int, seed: int, per_source: int = 1) -> list[tuple[int, int]]:
    """Draws ordered pairs of different images of one category, none twice, the categories in turn.

    Args:
        categories: of each image.
        n_pairs: how many pairs.
        seed: decides the draw.
        per_source: how many targets a source image gets at a time, as far as there are as many. A teacher that keeps
            what it learned of a source point profits.

    Returns:
        (source, target) numbers of images.

    Raises:
        DataError: when there are fewer such pairs than asked for.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for number, category in enumerate(categories):
        members[category].append(number)
    possible = sum(len(group) * (len(group) - 1) for group in members.values())
    if n_pairs < 1 or n_pairs > possible:
        raise DataError(
            f"Expected data.n_pairs between 1 and {possible}, the same-category pairs of {len(categories)} images, "
            f"but got {n_pairs}."
        )
    rng = np.random.default_rng([seed, len(categories)])
    queues = [_bundles(members[category], per_source, rng) for category in sorted(members)]
    bundles = (bundle for turn in zip_longest(*queues, fillvalue=[]) for bundle in turn)
    return list(islice((pair for bundle in bundles for pair in bundle), n_pairs))


def _bundles(group: list[int], per_source: int, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Returns all pairs of a group in random order, up to ``per_source`` of one source together."""
    sources = rng.permutation(group).tolist()
    targets = {source: [t for t in rng.permutation(group).tolist() if t != source] for source in sources}
    starts = range(0, len(group) - 1, per_source)
    return [[(s, t) for t in targets[s][start : start + per_source]] for start in starts for s in sources]
