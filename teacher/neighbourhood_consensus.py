"""Neighbourhood consensus between a source and a target image.

A prompt sees one point at a time, and a symmetric object has two places for it. The cells around the point are matched as
well, by the queries with which the recorded layers attend to the prompt, see :mod:`distill.core.consensus`. The target is
compared as it is and flipped, and the orientation that agrees better with the source is taken, so that a dog that faces
left can be matched to one that faces right.
"""

from typing import NamedTuple

from torch import Tensor

from distill.core.consensus import NeighbourhoodConsensus
from distill.core.geometry import flip_points
from teacher.feature_cache import FeatureCache, KeyedImage

TEMPERATURE = 0.05
"""Divides the cosines of cells."""


class ConsensusMaps(NamedTuple):
    """Consensus on N points of a source in a target image.

    Attributes:
        maps: (1, N, h, w), positive, over the cells of the target as it was given.
        flipped: whether the flipped target agreed better.
    """

    maps: Tensor
    flipped: bool


def consensus_maps(features: FeatureCache, src: KeyedImage, trg: KeyedImage, points: Tensor) -> ConsensusMaps:
    """Returns the consensus on points (N, 2), in fractions of the source's sides, in the better orientation."""
    src_map, trg_map = (features.descriptors(image)[None] for image in (src, trg))
    flipped = False
    if features.settings.consensus_flip:
        trg_flipped = features.descriptors(trg.flipped())[None]
        flipped = bool(_consensus(features, src_map).prefers_flipped(src_map, trg_map, trg_flipped))
        trg_map = trg_flipped if flipped else trg_map
    return ConsensusMaps(_maps(features, src_map, trg_map, points, flipped), flipped)


def flipped_consensus_maps(
    features: FeatureCache, src: KeyedImage, trg: KeyedImage, points: Tensor, flipped: bool
) -> Tensor:
    """Returns the consensus (1, N, h, w) with both images flipped, over the cells of the target as it was given.

    A network that distinguishes left from right gives another answer then, where it is not sure.

    Args:
        features: of images.
        src: the source.
        trg: the target.
        points: (N, 2), in fractions of the source's sides.
        flipped: the orientation that was taken, see :class:`ConsensusMaps`.
    """
    src_map, trg_map = (
        features.descriptors(image)[None] for image in (src.flipped(), trg if flipped else trg.flipped())
    )
    return _maps(features, src_map, trg_map, flip_points(points, (1, 1)), not flipped)


def _maps(features: FeatureCache, src_map: Tensor, trg_map: Tensor, points: Tensor, flipped: bool) -> Tensor:
    maps = _consensus(features, src_map).maps(src_map, trg_map, points[None].to(src_map), (1, 1))
    return maps.flip(-1) if flipped else maps


def _consensus(features: FeatureCache, src_map: Tensor) -> NeighbourhoodConsensus:
    side, settings = src_map.shape[-1], features.settings
    sigma = settings.consensus_sigma * side
    return NeighbourhoodConsensus(
        settings.consensus, side, side, sigma, TEMPERATURE, orientation_sigma=1.0, carry=False
    )
