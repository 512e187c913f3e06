"""Curriculum: training on the most confident labels first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.types import Matches


class Curriculum:
    """Trains on the most confident share of the teacher's labels first, and on a growing share as training goes on.

    Labels that the student makes itself all count: their confidences have another scale.

    Args:
        start: share of the labels at the beginning, in (0, 1].
        end: share at the end, in (0, 1].
        over: share of the training until ``end`` is reached, in (0, 1].

    Raises:
        ConfigError: for a share outside (0, 1].
    """

    def __init__(self, start: float = 0.4, end: float = 1.0, over: float = 0.6) -> None:
        if not all(0 < value <= 1 for value in (start, end, over)):
            raise ConfigError(f"Expected start, end and over of the curriculum in (0, 1] but got {[start, end, over]}.")
        self.start, self.end, self.over = start, end, over
        self._sorted = torch.zeros(0)

    def calibrate(self, confidence: Sequence[float] | Tensor) -> None:
        """Sets the confidences (R,) of all training labels, in any order; those of 0 are removed labels and have no share."""
        values = torch.as_tensor(confidence, dtype=torch.float32)
        self._sorted = values[values > 0].sort().values

    def least(self, progress: float) -> float:
        """Returns the least confidence that counts when ``progress`` in [0, 1] of the training is over."""
        if not len(self._sorted):
            return 0.0
        share = self.start + (self.end - self.start) * min(1.0, progress / self.over)
        rank = min(len(self._sorted) - 1, round((1 - share) * len(self._sorted)))
        return float(self._sorted[rank]) if share < 1 else 0.0

    def __call__(self, label: Matches, progress: float) -> Matches:
        """Returns ``label`` with the confidence of what does not count yet set to zero."""
        counted = label.confidence >= self.least(progress)
        return label._replace(confidence=label.confidence * counted)
