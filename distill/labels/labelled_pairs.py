"""Batches of pairs with their stored labels, made where pairs are loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.core.types import Matches, PairBatch
from distill.data.pairs import collate_pairs
from distill.labels.store import LabelStore
from distill.labels.truth import FewShotTruth


class LabelledPairs(NamedTuple):
    """A batch of pairs and its labels.

    Attributes:
        pairs: the batch.
        label: of its points; None when the store lacks one of them.
    """

    pairs: PairBatch
    label: Matches | None


class LabelledCollate:
    """Makes batches of pairs and reads their labels; a ``collate_fn``, which runs in the loading processes.

    Each process opens the store at its first batch, so that this object can be sent to a process that was not forked.

    Args:
        folder: of the label store.
        fingerprint: of the teacher whose labels are wanted.
        fallbacks: further folders to read from, see :class:`distill.labels.store.LabelStore`.
        truth: annotation that goes before the labels; points that it knows need none, and theirs may be zero.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, str],
        fallbacks: Sequence[str | Path] = (),
        truth: FewShotTruth | None = None,
    ) -> None:
        self.folder, self.fingerprint, self.fallbacks = folder, dict(fingerprint), list(fallbacks)
        self.truth = truth
        self._store: LabelStore | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}

    def __call__(self, pairs: Sequence[PairBatch]) -> LabelledPairs:
        """Returns the batch of ``pairs`` and its labels.

        Raises:
            LabelError: when the store, or a label, is damaged.
        """
        batch = collate_pairs(pairs)
        if self._store is None:
            self._store = LabelStore(self.folder, self.fingerprint, self.fallbacks)
        label, found = self._store.lookup(batch)
        needed = (batch if self.truth is None else self.truth.without_known(batch)).kps_mask
        return LabelledPairs(batch, label if bool(found[needed].all()) else None)


def split_labelled(batch: PairBatch | LabelledPairs) -> LabelledPairs:
    """Returns a batch with its labels; of pairs alone, without."""
    return batch if isinstance(batch, LabelledPairs) else LabelledPairs(batch, None)
