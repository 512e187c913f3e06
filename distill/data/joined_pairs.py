"""Two data sets of photographs as one, such as unannotated pairs and a few annotated ones."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from distill.core.protocols import Benchmark
from distill.core.types import PairBatch
from distill.data.pairs import ImageView, Query


class JoinedPairs(Dataset[PairBatch]):
    """The pairs of several data sets, one behind the other; name, split and tolerance are those of the first.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Benchmark]) -> None:
        self.parts = list(parts)
        self.name, self.split, self.threshold = parts[0].name, parts[0].split, parts[0].threshold
        self.has_truth = all(getattr(part, "has_truth", True) for part in parts)
        self._places = [(part, index) for part in self.parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        part, own = self._places[index]
        return part[own]

    def query(self, index: int) -> Query:
        """Returns which labels a pair has, see :meth:`distill.data.photograph_pairs.PhotographPairs.query`."""
        part, own = self._places[index]
        query = getattr(part, "query", None)
        return query(own) if query is not None else Query.of(part[own])

    def views(self, index: int, size: int, resize: str = "squash") -> tuple[ImageView, ImageView]:
        """Returns the images of a pair at another size, see :meth:`distill.data.photograph_pairs.PhotographPairs.views`."""
        part, own = self._places[index]
        return part.views(own, size, resize)  # type: ignore[attr-defined]
