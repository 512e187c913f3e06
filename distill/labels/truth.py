"""Few-shot truth: annotated pairs among the training pairs, whose labels are what a person set."""

from collections.abc import Iterable

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_heatmap, image_size
from distill.core.types import Matches, PairBatch

SIDE = 32
"""Cells a side of heatmaps in a batch of annotated points alone."""


class FewShotTruth:
    """Puts the annotation in place of the labels of some pairs, whoever made these labels.

    The label of an annotated point is its place, a Gaussian around it as the heatmap, and ``weight`` as the confidence. Points without a
    known counterpart keep their label. Annotated points need no label, see :meth:`without_known`.

    Args:
        pairs: fingerprints of the original source and target images of the annotated pairs.
        weight: confidence of the truth, in (0, 1]; labels weigh as much as their teacher is confident.
        sigma_cells: standard deviation of the heatmap's Gaussian, in cells.

    Raises:
        ConfigError: for a weight outside (0, 1], or a width that is not positive.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], weight: float = 1.0, sigma_cells: float = 0.7) -> None:
        if not 0 < weight <= 1 or sigma_cells <= 0:
            raise ConfigError(
                f"Expected truth.weight in (0, 1] and truth.sigma_cells above 0 but got {weight:g} and {sigma_cells:g}."
            )
        self.pairs, self.weight, self.sigma_cells = frozenset(pairs), weight, sigma_cells

    def known(self, pairs: PairBatch) -> Tensor:
        """Returns (B, N) bool: the points of annotated pairs whose counterpart is annotated."""
        keys = zip(pairs.src_original, pairs.trg_original, strict=True)
        rows = torch.tensor([(src.hash, trg.hash) in self.pairs for src, trg in keys], device=pairs.kps_mask.device)
        return pairs.kps_mask & rows[:, None] & torch.isfinite(pairs.trg_kps).all(-1)

    def without_known(self, pairs: PairBatch) -> PairBatch:
        """Returns the pairs with the points alone in ``kps_mask`` that need a label."""
        return pairs._replace(kps_mask=pairs.kps_mask & ~self.known(pairs))

    def __call__(self, pairs: PairBatch, label: Matches) -> Matches:
        """Returns the labels of a batch, with the truth where it is known.

        Where it is known of all points, heatmaps have :data:`SIDE` cells a side: nobody was asked who would say how many.
        """
        known = self.known(pairs)
        if not known.any():
            return label
        if bool((known == pairs.kps_mask).all()):
            label = label._replace(heatmap=label.heatmap.new_zeros(*known.shape, SIDE, SIDE))
        points = torch.where(known[..., None], pairs.trg_kps.to(label.trg_kps), label.trg_kps)
        cells, size = (label.heatmap.shape[-2], label.heatmap.shape[-1]), image_size(pairs.trg_img)
        heatmap = gaussian_heatmap(points, cells, size, self.sigma_cells * max(size) / max(cells)).to(label.heatmap)
        return Matches(
            points,
            torch.where(known, torch.full_like(label.confidence, self.weight), label.confidence),
            torch.where(known[..., None, None], heatmap, label.heatmap),
        )
