"""Filters of labels: criteria that weigh a teacher's answers before a student is trained on them.

Each criterion gives a weight in [0, 1] that multiplies the label's confidence; 0 takes the label out. The tolerant ones
fall off as a Gaussian of a distance: a strict cut also removes points that have no exact counterpart, and costs accuracy.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres, flip_points, gaussian_weight, image_size
from distill.core.protocols import Matcher, PairMatcher, match, match_query, on_device
from distill.core.types import Matches, PairBatch
from distill.data.pairs import exchanged


class Criterion(Protocol):
    """Weighs labels."""

    def __call__(self, pairs: PairBatch, label: Matches) -> Tensor:
        """Returns (B, N) weights in [0, 1]."""
        ...


class MinConfidence:
    """Removes labels of low confidence.

    Args:
        least: lowest confidence that is kept, in [0, 1].

    Raises:
        ConfigError: for a confidence outside [0, 1].
    """

    def __init__(self, least: float = 0.5) -> None:
        if not 0 <= least <= 1:
            raise ConfigError(f"Expected the least confidence of a filter in [0, 1] but got {least}.")
        self.least = least

    def __call__(self, pairs: PairBatch, label: Matches) -> Tensor:
        """See :class:`Criterion`."""
        return (label.confidence >= self.least).to(label.confidence)


class RelaxedCycle:
    """Weighs labels by relaxed cycle consistency.

    Another matcher matches the labelled target point back to the source. The weight is a Gaussian of the distance between
    its answer and the source point. A label outside the target is moved to its border first: no matcher takes such a query.

    Args:
        matcher: that matches back; a fast one suffices.
        tolerance: standard deviation of the Gaussian, as a fraction of the image's longer side.

    Raises:
        ConfigError: for a tolerance that is not positive.
    """

    def __init__(self, matcher: Matcher, tolerance: float = 0.1) -> None:
        self.matcher, self.tolerance = matcher, _positive(tolerance)

    def __call__(self, pairs: PairBatch, label: Matches) -> Tensor:
        """See :class:`Criterion`."""
        query = exchanged(pairs, label.trg_kps)
        back = _ask(self.matcher, query.src_img, query.trg_img, query.src_kps)
        return gaussian_weight(back, pairs.src_kps, image_size(pairs.src_img), self.tolerance)


class Agreement:
    """Weighs labels by their agreement with another matcher.

    The weight is a Gaussian of the distance between the label and the matcher's answer at the same point. Two different
    methods seldom make the same error.

    Args:
        matcher: whose answers the labels are compared with.
        tolerance: standard deviation of the Gaussian, as a fraction of the image's longer side.

    Raises:
        ConfigError: for a tolerance that is not positive.
    """

    def __init__(self, matcher: Matcher, tolerance: float = 0.1) -> None:
        self.matcher, self.tolerance = matcher, _positive(tolerance)

    def __call__(self, pairs: PairBatch, label: Matches) -> Tensor:
        """See :class:`Criterion`."""
        other = _ask(self.matcher, pairs.src_img, pairs.trg_img, pairs.src_kps)
        return gaussian_weight(other, label.trg_kps, image_size(pairs.trg_img), self.tolerance)


class FlipAgreement:
    """Weighs labels by their agreement with a matcher on the horizontally flipped images.

    The weight is a Gaussian of the distance between the label and the answer on the flipped images, flipped back. The
    images are matched anew; no stored heatmap is flipped.

    Args:
        matcher: whose answers the labels are compared with.
        tolerance: standard deviation of the Gaussian, as a fraction of the image's longer side.

    Raises:
        ConfigError: for a tolerance that is not positive.
    """

    def __init__(self, matcher: Matcher, tolerance: float = 0.1) -> None:
        self.matcher, self.tolerance = matcher, _positive(tolerance)

    def __call__(self, pairs: PairBatch, label: Matches) -> Tensor:
        """See :class:`Criterion`."""
        src_size, trg_size = image_size(pairs.src_img), image_size(pairs.trg_img)
        points = flip_points(pairs.src_kps, src_size)
        answer = _ask(self.matcher, pairs.src_img.flip(-1), pairs.trg_img.flip(-1), points)
        return gaussian_weight(flip_points(answer, trg_size), label.trg_kps, trg_size, self.tolerance)


class PeakMass:
    """Weighs labels by the share of their heatmap that lies near the answer.

    A teacher that averages several answers, such as those of several prompts, spreads its map where they disagree.

    Args:
        radius: within which a cell counts as near, as a fraction of the image's longer side.
        sharpness: the power that the map is raised to first.

    Raises:
        ConfigError: for a radius or a sharpness that is not positive.
    """

    def __init__(self, radius: float = 0.15, sharpness: float = 4.0) -> None:
        self.radius, self.sharpness = _positive(radius), _positive(sharpness)

    def __call__(self, pairs: PairBatch, label: Matches) -> Tensor:
        """See :class:`Criterion`."""
        height, width = pairs.trg_img.shape[-2:]
        peak = label.heatmap.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        mass = (label.heatmap.clamp_min(0) / peak).pow(self.sharpness)
        centres = cell_centres((mass.shape[-2], mass.shape[-1]), (height, width), label.trg_kps)
        near = (centres - label.trg_kps[..., None, None, :]).norm(dim=-1) <= self.radius * max(height, width)
        return (mass * near).sum((-2, -1)) / mass.sum((-2, -1)).clamp_min(1e-12)


class Filtered:
    """A teacher whose labels' confidence is multiplied by the criteria's weights.

    Args:
        teacher: makes the labels.
        criteria: by name.
    """

    def __init__(self, teacher: Matcher | PairMatcher, criteria: Mapping[str, Criterion]) -> None:
        self.teacher, self.criteria = teacher, dict(criteria)

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        label = match(self.teacher, pairs)
        weight = torch.ones_like(label.confidence)
        with torch.no_grad():
            for criterion in self.criteria.values():
                weight = weight * criterion(pairs, label)
        return label._replace(confidence=label.confidence * weight)


def _ask(matcher: Matcher, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Tensor:
    """Returns the answer (B, N, 2) of a matcher, which is brought to where the images are."""
    on_device(matcher, src_img.device)
    return match_query(matcher, src_img, trg_img, src_kps).trg_kps


def _positive(value: float) -> float:
    if value <= 0:
        raise ConfigError(f"Expected the amounts of a filter to be positive but got {value}; 0.1 is usual.")
    return value
