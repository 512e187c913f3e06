"""A matcher that reads stored labels, and has a teacher make those that are missing."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.core.checks import check_label
from distill.core.errors import ConfigError, LabelError
from distill.core.protocols import Fingerprinted, Matcher, PairMatcher, UsesPromptCache, match
from distill.core.types import Matches, PairBatch
from distill.data.pairs import select_pairs
from distill.labels import LabelStore
from distill.labels.prompt_cache import PromptCacheStore


class Cached:
    """Answers from a label store; asks the teacher for what is missing there and writes it through.

    Args:
        folder: of the label store.
        teacher: makes missing labels, and says by its fingerprint which stored ones are its own. None reads only.
        flush_seconds: how long new labels may stay in memory before they are written.
        fallbacks: further folders that labels are read from, see :class:`LabelStore`.
        read_only: whether missing labels are an error although there is a teacher, which then only says which labels
            are meant.
        prompt_cache: whether the teacher's optimised prompts are stored too, for further targets of the same points.
        images: the data set's ``size`` and ``resize``, where it has them; see :func:`fingerprint_of`.

    Raises:
        ConfigError: when the teacher is no matcher or has no fingerprint, or is asked to store prompts and has none.
        LabelError: when the store holds labels of another teacher, or a damaged file.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: Matcher | PairMatcher | None = None,
        flush_seconds: float = 60,
        fallbacks: Sequence[str | Path] = (),
        read_only: bool = False,
        prompt_cache: bool = False,
        images: Mapping[str, Any] | None = None,
    ) -> None:
        self.teacher, self.flush_seconds, self.read_only = teacher, flush_seconds, read_only
        self.store = LabelStore(folder, None if teacher is None else fingerprint_of(teacher, images), fallbacks)
        self.prompt_cache = self._prompt_cache(teacher) if prompt_cache and teacher is not None else None
        self._flushed = time.monotonic()

    def _prompt_cache(self, teacher: Matcher | PairMatcher) -> PromptCacheStore:
        if not isinstance(teacher, UsesPromptCache):
            raise ConfigError(
                f"Expected a teacher with prompts to store but {type(teacher).__name__} has no use_prompt_cache(); "
                "set labels.prompt_cache=false."
            )
        cache = PromptCacheStore(self.store.folder, self.fingerprint())
        teacher.use_prompt_cache(cache)
        return cache

    def fingerprint(self) -> dict[str, str]:
        """Returns the teacher's fingerprint, see :func:`fingerprint_of`."""
        return dict(self.store.fingerprint or {})

    def __call__(self, src_img: torch.Tensor, trg_img: torch.Tensor, src_kps: torch.Tensor) -> Matches:
        """Raises a :class:`ConfigError`: two images and points alone do not say which label is theirs."""
        raise ConfigError(
            "Expected pairs of a data set for stored labels but got images and points alone; labels are found by the "
            "fingerprints of a data set's images: use another matcher, or python -m distill evaluate matcher=cached"
        )

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`.

        Missing labels are made from the images given; :func:`distill.labels.generate.label` makes them from the originals,
        at the size that the teacher is made for.

        Raises:
            LabelError: when labels are missing and there is nothing to make them with.
        """
        labels, found = self.store.lookup(pairs)
        missing = pairs.kps_mask & ~found
        if not missing.any():
            return labels
        if self.teacher is None or self.read_only:
            raise LabelError(self._what_is_missing(pairs, missing))
        self.store.add(*self._ask(pairs, missing))
        if self.due:
            self.flush()
        return self.store.lookup(pairs)[0]

    @property
    def due(self) -> bool:
        """Whether labels have been in memory for longer than they may."""
        return time.monotonic() - self._flushed > self.flush_seconds

    def flush(self) -> None:
        """Writes new labels to the store."""
        if self.prompt_cache is not None:
            self.prompt_cache.flush()  # before the labels: what has a label is not asked for again
        self.store.flush()
        self._flushed = time.monotonic()

    def _ask(self, pairs: PairBatch, missing: torch.Tensor) -> tuple[PairBatch, Matches, torch.Tensor]:
        """Has the teacher answer the missing points of the pairs that lack any.

        Raises:
            DataError: when an answer is no label, see :func:`distill.core.checks.check_label`.
        """
        assert self.teacher is not None
        rows = missing.any(1).nonzero()[:, 0].tolist()
        asked = select_pairs(pairs, rows)._replace(kps_mask=missing[rows])
        with torch.no_grad():
            answer = match(self.teacher, asked)
        check_label(answer, missing[rows], type(self.teacher).__name__)
        return asked, answer, missing[rows]

    def _what_is_missing(self, pairs: PairBatch, missing: torch.Tensor) -> str:
        row = int(missing.any(1).nonzero()[0, 0])
        folders = " and ".join(map(str, self.store.folders))
        return (
            f"Expected a label for every point in {folders} ({len(self.store)} labels) but {int(missing.sum())} "
            f"of {int(pairs.kps_mask.sum())} are missing, such as of {pairs.src_id[row]} -> {pairs.trg_id[row]}; "
            f"make them with: python -m distill label labels.dir={self.store.folder}"
        )


def fingerprint_of(teacher: Matcher | PairMatcher, images: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns what decides a teacher's labels.

    Args:
        teacher: says what decides its answers. One that names no ``size`` is given images as the data set brings them, on
            which its answers depend, too, unless it says ``depends_on_images = False``.
        images: the data set's ``size`` and ``resize``, where it has them.

    Raises:
        ConfigError: when it is no matcher, or says nothing or something else than text by name.
    """
    name = type(teacher).__name__
    if not isinstance(teacher, Fingerprinted):
        raise ConfigError(f"Expected a teacher with a fingerprint() but {name} has none; add one.")
    if not callable(teacher) and not isinstance(teacher, PairMatcher):
        raise ConfigError(
            f"Expected a teacher with __call__(src_img, trg_img, src_kps) or match_pairs(pairs) but {name} has neither; add one."
        )
    fingerprint = teacher.fingerprint()
    texts = isinstance(fingerprint, dict) and all(
        isinstance(text, str) for item in fingerprint.items() for text in item
    )
    if not fingerprint or not texts:
        raise ConfigError(
            f"Expected fingerprint() of {name} to return text by name, such as {{'method': 'mine 1'}}, but got {fingerprint!r}; "
            "put str() around numbers."
        )
    sized = getattr(teacher, "size", None) is not None or not getattr(teacher, "depends_on_images", True)
    if images is None or sized:
        return fingerprint
    return fingerprint | {
        f"images.{key}": str(images[key]) for key in ("size", "resize") if images.get(key) is not None
    }
