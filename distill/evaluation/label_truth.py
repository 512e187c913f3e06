"""A data set whose truth is a teacher's labels, for photographs without annotation."""

from typing import Any

import torch
from torch.utils.data import Dataset

from distill.core.protocols import Benchmark, Matcher, PairMatcher, match
from distill.core.types import PairBatch


class LabelTruth(Dataset[PairBatch]):
    """The pairs of ``benchmark`` with the teacher's answers as target keypoints: PCK then says how far one agrees with it.

    Args:
        benchmark: the pairs.
        teacher: that answers them.

    Attributes:
        has_truth: true, whether or not ``benchmark`` is annotated.
        truth_name: what pictures call the target's points.
    """

    def __init__(self, benchmark: Benchmark, teacher: Matcher | PairMatcher) -> None:
        self.benchmark, self.teacher = benchmark, teacher
        self.name, self.split, self.threshold = benchmark.name, benchmark.split, benchmark.threshold
        self.has_truth, self.truth_name = True, "teacher's label"

    def __getattr__(self, name: str) -> Any:
        if "benchmark" not in self.__dict__:  # while a copy is made, or a loading process receives one
            raise AttributeError(name)
        return getattr(self.benchmark, name)

    def __len__(self) -> int:
        return len(self.benchmark)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        pairs = self.benchmark[index]
        with torch.no_grad():
            answer = match(self.teacher, pairs).trg_kps
        return pairs._replace(trg_kps=answer, trg_all_kps=answer, trg_all_id=pairs.kps_id)
