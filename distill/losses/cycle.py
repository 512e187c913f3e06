"""Relaxed cycle-consistency loss."""

from torch import Tensor

from distill.core.errors import ConfigError
from distill.losses.base import Example, dense_parts, weighted_mean


class RelaxedCycle:
    """Distance between a source point and its match's match in the source, beyond a tolerance.

    A strict cycle also penalises points without an exact counterpart. In the literature it costs accuracy where a relaxed
    one gains it.

    Args:
        tolerance: as a fraction of the image's longer side.

    Raises:
        ConfigError: for a tolerance outside [0, 1).
    """

    dense = True

    def __init__(self, tolerance: float = 0.05) -> None:
        if not 0 <= tolerance < 1:
            raise ConfigError(f"Expected the tolerance of RelaxedCycle in [0, 1) but got {tolerance}.")
        self.tolerance = tolerance

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        student, src_map, trg_map = dense_parts(example)
        there = example.prediction.trg_kps
        back = student.correlate(trg_map, src_map, there, example.trg_size, example.src_size).trg_kps
        offset = (back - example.pairs.src_kps) / max(example.src_size)
        distance = offset.square().sum(-1).add(1e-12).sqrt()
        return weighted_mean((distance - self.tolerance).relu(), example.label.confidence, example.pairs.kps_mask)
