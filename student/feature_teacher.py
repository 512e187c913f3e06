"""A teacher without a diffusion model: nearest neighbours with neighbourhood consensus, cycle and flip consistency."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.checks import check_query
from distill.core.consensus import NeighbourhoodConsensus, pooled
from distill.core.errors import ConfigError, in_one_line
from distill.core.geometry import flip_points, gaussian_weight, image_size, resize_images, sample_at
from distill.core.numbers import is_number, is_whole
from distill.core.precision import in_single, without_autocast
from distill.core.readout import window_mass, windowed_soft_argmax
from distill.core.tensor_cache import TensorCache
from distill.core.types import Matches, PairBatch
from student.backbone import whole_cells
from student.fused_features import Describer, source_fingerprint

Size = tuple[int, int]
"""H, W, px."""

DESCRIBED_TOGETHER = 4
"""Images that are described ahead at once. So few get the descriptors that each gets alone, bit for bit, on the CPUs where this was
tested; of eight some differ in the last bit of single precision. On a GPU it was not tested."""


class FeatureTeacher:
    """Matches by the dense features of any network that describes images.

    The similarity of descriptors is corrected by neighbourhood consensus (:mod:`distill.core.consensus`). For it the
    target is taken as it is or flipped horizontally, whichever agrees better with the source, so that a bird that
    faces left can be matched to one that faces right. With a ``flip_tolerance`` the same is computed for both images flipped,
    and the two results are averaged.

    The confidence is a product of three factors: the probability of the window around the answer, the relaxed cycle
    consistency, and the agreement with the answer for flipped images. The last two are exp(-d^2 / (2 tolerance^2)), d
    being the distance as a fraction of the longer side.

    Args:
        model: has ``describe(images) -> (B, C, h, w)``, descriptors of length 1, as :class:`student.NearestNeighbour`,
            :class:`student.FusedFeatures`, :class:`student.StudentMatcher` and ``teacher.DiffusionFeatures`` have.
        temperature: divides the cosines.
        side: largest number of source cells a side that take part in the consensus; finer maps are averaged.
        target_side: largest number of target cells a side; the resolution of the answer.
        sigma_cells: Gaussian width of the neighbourhood, in source cells.
        consensus: strength of the consensus; 0 for plain nearest neighbours.
        flip: whether the consensus may be taken from the flipped target.
        cycle_tolerance: of the cycle consistency, as a fraction of the longer side; None leaves it out.
        flip_tolerance: of the agreement with the flipped images, as a fraction of the longer side; infinite to average without
            effect on the confidence; None leaves both out, which halves the work.
        radius_cells: of the window of the soft-argmax.
        feature_cache_size: bound on the memory of kept descriptors of images, GiB; 0 keeps none.
        size: side of the squares that images are brought to before they are described, px; None for what the model
            says it wants (``model.size``), and as they are where it says nothing.
            Labels are made at that size from the original images, whatever size a student has.
        consensus_tolerance: see ``tolerance`` of :class:`distill.core.consensus.NeighbourhoodConsensus`.
        scale: factor by which images are enlarged before they are described, to the nearest whole cell of the model
            (of ``model.patch`` px, where it has that); maps may then have so many times ``target_side`` cells. A network
            places parts better in an image that is somewhat larger than those that it was trained on (Touvron et al.,
            "Fixing the train-test resolution discrepancy", NeurIPS 2019, for classification).

    Raises:
        ConfigError: for an amount that must be positive and is not, a size that is no whole number, and a scale that is no number.
    """

    def __init__(
        self,
        model: Describer,
        temperature: float = 0.05,
        side: int = 20,
        target_side: int = 40,
        sigma_cells: float = 3.0,
        consensus: float = 3.0,
        flip: bool = True,
        cycle_tolerance: float | None = 0.1,
        flip_tolerance: float | None = 0.1,
        radius_cells: float = 2.0,
        feature_cache_size: float = 1.0,
        size: int | None = None,
        consensus_tolerance: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        if size is not None and not is_whole(size):
            raise ConfigError(
                f"Expected size of the feature teacher as whole px but got {size!r}; correct teacher.size."
            )
        if not is_number(scale) or not 0 < scale < math.inf:
            raise ConfigError(
                f"Expected scale of the feature teacher as a positive number but got {scale!r}; 1.0 describes images as they are."
            )
        if not is_number(feature_cache_size) or not 0 <= feature_cache_size < math.inf:
            raise ConfigError(
                f"Expected feature_cache_size of the feature teacher in GiB but got {feature_cache_size!r}; 0 keeps nothing."
            )
        amounts = {"radius_cells": radius_cells, "size": 1 if size is None else size}
        tolerances = {"cycle_tolerance": cycle_tolerance, "flip_tolerance": flip_tolerance}
        amounts |= {name: value for name, value in tolerances.items() if value is not None}
        wrong = {name: value for name, value in amounts.items() if not value > 0}
        if wrong:
            raise ConfigError(
                f"Expected positive amounts in the feature teacher but got {wrong}; correct teacher.<name>."
            )
        self.model = model.eval().requires_grad_(False) if isinstance(model, nn.Module) else model
        self.consensus = NeighbourhoodConsensus(
            consensus, side, math.ceil(target_side * scale), sigma_cells, temperature, tolerance=consensus_tolerance
        )
        self.flip, self.cycle_tolerance, self.flip_tolerance = flip, cycle_tolerance, flip_tolerance
        self.radius_cells = radius_cells
        self.size, self.resize = getattr(model, "size", None) if size is None else size, getattr(model, "resize", None)
        self.scale = scale
        self._features = TensorCache(feature_cache_size)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self._parameters())

    def _parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters() if isinstance(self.model, nn.Module) else iter(())

    def fingerprint(self) -> dict[str, str]:
        """See :class:`distill.core.protocols.Fingerprinted`."""
        settings = {name: str(value) for name, value in sorted(vars(self.consensus).items())}
        settings["compared_side"] = str(self.consensus.compared_side)
        settings |= {name: str(getattr(self, name)) for name in ("flip", "cycle_tolerance", "flip_tolerance", "size")}
        settings |= {"resize": self.resize} if self.resize == "letterbox" else {}
        settings |= {"scale": str(self.scale)} if self.scale != 1 else {}
        settings |= {"cells": "whole"} if self._resamples() else {}  # cells at the border reached beyond the image once
        told = {f"model.{name}": value for name, value in source_fingerprint(self.model).items()}
        return {"method": "features 7", "radius_cells": str(self.radius_cells), **settings, **told}

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`."""
        check_query(src_img, trg_img, src_kps, min_points=0)
        src, trg = self.describe(self._sized(src_img)), self.describe(self._sized(trg_img))
        with without_autocast(src):
            return self._match(src, trg, src_kps, image_size(src_img), image_size(trg_img))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`; each image is described once."""
        src = self._cached(pairs.src_hash, pairs.src_img)
        trg = self._cached(pairs.trg_hash, pairs.trg_img)
        with without_autocast(src):
            return self._match(src, trg, pairs.src_kps, image_size(pairs.src_img), image_size(pairs.trg_img))

    def describe_ahead(self, pairs: PairBatch) -> None:
        """See :class:`distill.core.protocols.DescribesAhead`."""
        for hashes, images in ((pairs.src_hash, pairs.src_img), (pairs.trg_hash, pairs.trg_img)):
            new = list({key: row for row, key in enumerate(hashes) if key not in self._features}.values())
            for first in range(0, len(new), DESCRIBED_TOGETHER):
                rows = new[first : first + DESCRIBED_TOGETHER]
                self._cached([hashes[row] for row in rows], images[rows])

    def describe(self, images: Tensor) -> Tensor:
        """Returns (B, 2, C, h, w): descriptors of length 1 of the images (B, 3, H, W) and of the flipped images."""
        parameter = next(self._parameters(), None)
        if isinstance(self.model, nn.Module) and parameter is not None and parameter.device != images.device:
            self.model.to(images.device)
        with torch.no_grad():
            maps = in_single(self.model.describe(torch.cat([images, images.flip(-1)]))).to(images.device)
        return pooled(maps, self.consensus.target_side).unflatten(0, (2, -1)).transpose(0, 1)

    def check_size(self, size: int) -> None:
        """Raises a :class:`ConfigError` when the model cannot describe images of ``size`` px a side enlarged by ``scale``.

        A model without ``check_size`` describes a black image to see.
        """
        if self.scale == 1:
            return
        (side, _), check = self._described_size((size, size)), getattr(self.model, "check_size", None)
        try:
            if callable(check):
                check(side)
            else:
                self.describe(torch.zeros(1, 3, side, side))
        # How networks say that a size does not fit.
        except (ConfigError, AssertionError, RuntimeError, ValueError) as error:
            reason = in_one_line(error, 160)
            raise ConfigError(
                f"Expected a student that describes images of {side} px a side, {self.scale:g} times {self.size or size} px, to label "
                f"its own pairs, but it cannot ({reason}); set self_distillation.teacher.scale=1.0."
            ) from error

    def _sized(self, images: Tensor) -> Tensor:
        """Returns images (B, 3, H, W) as the network sees them."""
        return resize_images(images, self._described_size(image_size(images)))

    def _described_size(self, size: Size) -> Size:
        """Returns (H, W) at which images of ``size`` are described: ``self.size`` a side, if there is one, times ``scale``."""
        sides = size if self.size is None else (self.size, self.size)
        if self.scale == 1:
            return sides
        patch = getattr(self.model, "patch", 1)
        patch = patch if type(patch) is int and patch > 0 else 1  # a student of one's own may call something else so
        return whole_cells(sides, self.scale, patch)

    def _resamples(self) -> bool:
        """Returns whether the model rounds images to whole cells of its network, as far as is known before one is seen."""
        resamples = getattr(self.model, "resamples", None)
        return self.size is not None and callable(resamples) and resamples(whole_cells((self.size,) * 2, self.scale, 1))

    def _cached(self, hashes: Sequence[str], images: Tensor) -> Tensor:
        """Returns :meth:`describe` of images, from the cache where they are in it."""
        known = {key: self._features[key] for key in hashes if key in self._features}
        new = {key: row for row, key in enumerate(hashes) if key not in known}
        if new:
            described = self.describe(self._sized(images[list(new.values())])).half().cpu()
            known |= {key: maps.clone() for key, maps in zip(new, described, strict=True)}
            self._features.update((key, known[key]) for key in new)
        # Single precision first: under autocast on a CPU torch joins no half floats.
        return torch.stack([known[key].to(images.device, torch.float32) for key in hashes])

    def _match(self, src: Tensor, trg: Tensor, points: Tensor, src_size: Size, trg_size: Size) -> Matches:
        """Matches pairs; ``src`` and ``trg`` are (B, 2, C, h, w), ``points`` (B, N, 2)."""
        (src_map, src_flipped), (trg_map, trg_flipped) = src.unbind(1), trg.unbind(1)
        flipped = src_map.new_zeros(len(src_map), dtype=torch.bool)
        if self.flip and self.consensus.strength:
            flipped = self.consensus.prefers_flipped(src_map, trg_map, trg_flipped)
        logits, consistency = self._logits(src_map, trg, points, src_size, flipped), torch.ones_like(points[..., 0])
        first = self._read_out(logits, trg_size)
        if self.cycle_tolerance is not None:
            back = self._read_out(self._logits(trg_map, src, first, trg_size, flipped), src_size)
            consistency = consistency * gaussian_weight(back, points, src_size, self.cycle_tolerance)
        if self.flip_tolerance is not None:
            other, moved = trg.flip(1), flip_points(points, src_size)
            second = self._logits(src_flipped, other, moved, src_size, flipped).flip(-1)
            again = self._read_out(second, trg_size)
            consistency = consistency * gaussian_weight(first, again, trg_size, self.flip_tolerance)
            logits = (logits + second) / 2
        found, softened = self._read_out(logits, trg_size), logits / self.consensus.confidence_temperature
        confidence = consistency * window_mass(softened, found, trg_size, self.radius_cells)
        return Matches(found, confidence, logits.flatten(2).softmax(-1).view_as(logits))

    def _logits(self, src: Tensor, trg: Tensor, points: Tensor, size: Size, flipped: Tensor) -> Tensor:
        """Returns (B, N, h, w): scores of the cells of targets for points, consensus included.

        Points are scored in the target as it is. Only the consensus is taken from the flipped target, where that agrees better.

        Args:
            src: (B, C, h, w).
            trg: (B, 2, C, h, w), the targets as they are and flipped.
            points: (B, N, 2) x, y, px of the sources.
            size: (H, W) of the sources, px.
            flipped: (B,) bool, whether the consensus is taken from the flipped target.
        """
        trg_map, trg_flipped = trg.unbind(1)
        queries = F.normalize(sample_at(src, points, size), dim=-1)
        scores = torch.einsum("bnc,bchw->bnhw", queries, trg_map) / self.consensus.temperature
        if not self.consensus.strength:
            return scores
        agreement = self.consensus.oriented_maps(src, trg_map, trg_flipped, flipped, points, size)
        return self.consensus.add_to_logits(scores, agreement)

    def _read_out(self, logits: Tensor, size: Size) -> Tensor:
        return windowed_soft_argmax(logits, size, radius_cells=self.radius_cells)
