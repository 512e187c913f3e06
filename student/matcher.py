"""The student: one pass of a small network for each image, then a correlation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.checks import check_query
from distill.core.consensus import NeighbourhoodConsensus
from distill.core.errors import ConfigError
from distill.core.geometry import image_size, sample_at
from distill.core.precision import in_single, without_autocast
from distill.core.readout import window_mass, windowed_soft_argmax
from distill.core.types import Matches
from student.backbone import Backbone, Tuning
from student.flip_test import join, of_flipped, of_images
from student.fusion import Fusion
from student.lora import unmerged
from student.refinement import Refinement


class StudentMatcher(nn.Module):
    """Correlates the descriptor at each query point with the descriptors of all target cells.

    Args:
        backbone: name of a timm model.
        strides: px per cell of the maps that are fused, finest first; the heatmap has the finest one.
        width: channels of the head's descriptors.
        weights: see :class:`student.backbone.Backbone`.
        mean: see there.
        std: see there.
        options: see there.
        position: whether descriptors depend on their position in the image. It helps for upright, centred objects and
            hurts for others.
        temperature: of the correlation at the start; it is learned.
        radius_cells: of the window of the soft-argmax.
        layers: see :class:`student.backbone.Backbone`.
        tuning: see there.
        lora: see there.
        upsample: how often the heatmap's sides are doubled, see :class:`student.fusion.Fusion`.
        backbone_skip: whether the backbone's own features are concatenated to the head's, see there.
        refinement: channels of a local refinement of each answer at stride 4, see
            :class:`student.refinement.Refinement`; 0 for none.
        consensus: strength of neighbourhood consensus, see :mod:`distill.core.consensus`; 0 for none. It is
            used in evaluation mode only.
        consensus_sigma: Gaussian width of its neighbourhood, in source cells.
        consensus_tolerance: standard deviation of what a neighbour's match speaks for, as a fraction of the image's sides.
        debias: see :class:`student.backbone.Backbone`.
        scales: see there.

    Raises:
        ConfigError: for a width, temperature or radius that is not positive.
    """

    def __init__(
        self,
        backbone: str,
        strides: Sequence[int] = (4, 8, 16),
        width: int = 128,
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        options: dict[str, Any] | None = None,
        position: bool = False,
        temperature: float = 0.05,
        radius_cells: float = 3.0,
        layers: Sequence[int] | None = None,
        tuning: Tuning = "full",
        lora: dict[str, Any] | None = None,
        upsample: int = 0,
        backbone_skip: bool = False,
        refinement: int = 0,
        consensus: float = 0.0,
        consensus_sigma: float = 3.0,
        consensus_tolerance: float = 0.0,
        debias: int = 0,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if min(width, temperature, radius_cells) <= 0 or refinement < 0:
            raise ConfigError(
                "Expected width, temperature and radius_cells of the student to be positive and refinement at least 0 but "
                f"got {width}, {temperature}, {radius_cells} and {refinement}."
            )
        self.backbone = Backbone(backbone, strides, weights, mean, std, options, layers, tuning, lora, debias, scales)
        self.fusion = Fusion(self.backbone.channels, width, position, upsample, backbone_skip)
        self.refinement = Refinement(refinement, radius_cells) if refinement else None
        self.consensus: NeighbourhoodConsensus | None = None
        if consensus != 0:
            self.consensus = NeighbourhoodConsensus(
                consensus, sigma_cells=consensus_sigma, tolerance=consensus_tolerance
            )
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.radius_cells = radius_cells

    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        The answer is in single precision at least, also under autocast and with weights of half precision. The heatmap
        holds similarities divided by the temperature, plus the neighbourhood consensus if there is one; a softmax over
        its cells is a distribution. The confidence is the probability of the window around the answer, with consensus
        at :attr:`~distill.core.consensus.NeighbourhoodConsensus.confidence_temperature`.
        """
        if not (self.training or torch.compiler.is_compiling()):
            check_query(src_img, trg_img, src_kps, min_points=0, same_size=True)
        return self.forward_with_descriptors(src_img, trg_img, src_kps)[0]

    def forward_with_descriptors(
        self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor
    ) -> tuple[Matches, Tensor, Tensor]:
        """Returns the answer, and the descriptors (B, C, h, w), of length 1, of sources and targets as they are."""
        pairs = src_img.shape[0]  # len() is a constant to torch.export, which then falls back to a slower capture
        maps = self.encode(torch.cat([src_img, trg_img]))
        sizes = image_size(src_img), image_size(trg_img)
        answer = self.match_encoded(maps[:pairs], maps[pairs:], src_kps, *sizes)
        if self.refinement is not None:
            answer = answer._replace(trg_kps=self.refinement(src_img, trg_img, src_kps, answer.trg_kps))
        maps = of_images(maps) if self._flip_test else maps
        return answer, maps[:pairs], maps[pairs:]

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), of ``images`` (B, 3, H, W) in [0, 1]."""
        return F.normalize(self.fusion(self.backbone(images)), dim=1)

    def correlate(
        self, src_map: Tensor, trg_map: Tensor, src_kps: Tensor, src_size: tuple[int, int], trg_size: tuple[int, int]
    ) -> Matches:
        """Matches points by descriptors alone, without consensus.

        Args:
            src_map: (B, C, h, w), of :meth:`describe`.
            trg_map: the same of the targets.
            src_kps: (B, N, 2) x, y, px of the sources.
            src_size: (H, W) of the source images, px.
            trg_size: (H, W) of the target images, px.
        """
        src_map, trg_map = in_single(src_map), in_single(trg_map)
        with without_autocast(src_map):
            return self._read_out(self._scores(src_map, trg_map, src_kps, src_size), trg_size)

    def encode(self, images: Tensor) -> Tensor:
        """Returns what :meth:`match_encoded` needs of each image, (B, D, h, w).

        These are the descriptors of :meth:`describe`; with consensus, in evaluation mode, those of the image and its
        horizontal flip, joined (:mod:`student.flip_test`).
        """
        if not self._flip_test:
            return self.describe(images)
        maps, number = self.describe(torch.cat([images, images.flip(-1)])), images.shape[0]
        return join(maps[:number], maps[number:])

    def match_encoded(
        self, src_map: Tensor, trg_map: Tensor, src_kps: Tensor, src_size: tuple[int, int], trg_size: tuple[int, int]
    ) -> Matches:
        """Matches points by what :meth:`encode` returned. Without consensus, or in training, this is :meth:`correlate`.

        Points are scored in the targets as they are, as in training. Their neighbours are matched in each target or its
        horizontal flip, whichever agrees better with the source.

        Arguments are those of :meth:`correlate`, with maps (B, D, h, w) of :meth:`encode`.
        """
        if self.consensus is None or self.training:
            return self.correlate(src_map, trg_map, src_kps, src_size, trg_size)
        src_map, trg_map = in_single(src_map), in_single(trg_map)
        with without_autocast(src_map):
            flipped_map = of_flipped(trg_map)
            flipped = self.consensus.prefers_flipped(src_map, trg_map, flipped_map)
            agreement = self.consensus.oriented_maps(src_map, trg_map, flipped_map, flipped, src_kps, src_size)
            heatmap = self.consensus.add_to_logits(self._scores(src_map, trg_map, src_kps, src_size), agreement)
            return self._read_out(heatmap, trg_size, self.consensus.confidence_temperature)

    @property
    def patch(self) -> int:
        """Side of the coarsest cells, px, of a vision transformer its patch; images whose sides it divides are not resized again."""
        return self.backbone.coarsest

    def resamples(self, size: tuple[int, int]) -> bool:
        """See :meth:`student.backbone.Backbone.resamples`."""
        return self.backbone.resamples(size)

    @property
    def _flip_test(self) -> bool:
        """Whether flipped images are described too."""
        return self.consensus is not None and not self.training

    def _scores(self, src_map: Tensor, trg_map: Tensor, src_kps: Tensor, src_size: tuple[int, int]) -> Tensor:
        """Returns (B, N, h, w): similarities of points and target cells, divided by the temperature."""
        queries = F.normalize(sample_at(src_map, src_kps, src_size), dim=-1)
        return torch.einsum("bnc,bchw->bnhw", queries, trg_map) / in_single(self.log_temperature).exp()

    def _read_out(self, heatmap: Tensor, trg_size: tuple[int, int], temperature: float = 1.0) -> Matches:
        """Reads answers from scores; ``temperature`` divides them before the confidence is computed."""
        trg_kps = windowed_soft_argmax(heatmap, trg_size, radius_cells=self.radius_cells)
        confidence = window_mass(heatmap / temperature, trg_kps, trg_size, self.radius_cells)
        return Matches(trg_kps, confidence, heatmap)

    def check_size(self, size: int) -> None:
        """Raises a :class:`ConfigError` when images of ``size`` x ``size`` px cannot be described; describes one to see."""
        self.backbone.try_size(size)

    def freeze_for_export(self, size: int) -> None:
        """Prepares the student, in place, for export: adapters merged, images of ``size`` x ``size`` px only."""
        self.merge_adapters()
        self.backbone.fix_size(size)

    def merge_adapters(self) -> None:
        """Adds low-rank adapters, if there are any, to the weights that they adapt, in place."""
        self.backbone.merge_adapters()

    def unmerged(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights of this student, saved after :meth:`merge_adapters`, by the names that they have beside its adapters."""
        return unmerged(self, tensors)
