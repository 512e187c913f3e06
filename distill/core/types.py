"""The types that all parts exchange: pairs of images, and matches.

Shapes use B for pairs, N for query points, (H, W) for image pixels and (h, w) for heatmap cells. Points follow the
convention of :mod:`distill.core.geometry`.
"""

from typing import NamedTuple

from torch import Tensor


class Matches(NamedTuple):
    """Where each query point of the source lies in the target; a matcher's answer, and a stored label.

    Attributes:
        trg_kps: (B, N, 2) x, y in pixels of the target image as given to the matcher.
        confidence: (B, N) in [0, 1].
        heatmap: (B, N, h, w) scores over target cells; higher is likelier, the scale is the matcher's own.
    """

    trg_kps: Tensor
    confidence: Tensor
    heatmap: Tensor


class Original(NamedTuple):
    """An image before it was resized; what labels are keyed by.

    Attributes:
        hash: fingerprint: of the file's bytes, or of the scene that is rendered. It does not depend on the size that
            the image is brought to.
        size: height, width, px.
    """

    hash: str
    size: tuple[int, int]


class PairBatch(NamedTuple):
    """B image pairs with their annotations.

    Images have been brought to one common size. Points and boxes are in pixels of these images; ``trg_content`` and
    ``trg_size`` lead back to the pixels in which ``pck_threshold`` is given and scores are taken, the original ones
    unless a benchmark's convention says otherwise.

    Attributes:
        src_img: (B, 3, H, W) float in [0, 1].
        trg_img: (B, 3, H, W) float in [0, 1].
        src_kps: (B, N, 2) x, y, px; entries outside ``kps_mask`` are padding.
        trg_kps: (B, N, 2) x, y, px.
        kps_mask: (B, N) bool, true where the point is annotated in both images.
        kps_id: (B, N) int64, which named part the point is; -1 in the padding.
        src_bbox: (B, 4) x0, y0, x1, y1, px.
        trg_bbox: (B, 4) x0, y0, x1, y1, px.
        trg_all_kps: (B, M, 2) x, y, px, of every annotated point of the target, common or not; padded.
        trg_all_id: (B, M) int64, which named part each of these is; -1 in the padding.
        src_content: (B, 4) x0, y0, x1, y1, px, the part of ``src_img`` that shows the photograph; the rest is padding.
        trg_content: (B, 4), the same of ``trg_img``.
        trg_size: (B, 2) height, width of the target image that scores are taken in, px.
        pck_threshold: (B,) tolerance base in pixels of ``trg_size``; a match is right within ``alpha`` times this.
        variation: (B, 4) int64, SPair-71k's viewpoint (0-2), scale (0-2), truncation (0-3: none, source, target,
            both) and occlusion (0-3).
        category: B names.
        src_id: B names of source images, for people.
        trg_id: B names of target images, for people.
        src_hash: B fingerprints of the source images' resized content, what a teacher's caches and randomness are keyed by.
        trg_hash: B fingerprints of the target images' resized content.
        src_original: B source images before resizing, what labels are keyed by.
        trg_original: B target images before resizing.
    """

    src_img: Tensor
    trg_img: Tensor
    src_kps: Tensor
    trg_kps: Tensor
    kps_mask: Tensor
    kps_id: Tensor
    src_bbox: Tensor
    trg_bbox: Tensor
    trg_all_kps: Tensor
    trg_all_id: Tensor
    src_content: Tensor
    trg_content: Tensor
    trg_size: Tensor
    pck_threshold: Tensor
    variation: Tensor
    category: list[str]
    src_id: list[str]
    trg_id: list[str]
    src_hash: list[str]
    trg_hash: list[str]
    src_original: list[Original]
    trg_original: list[Original]
