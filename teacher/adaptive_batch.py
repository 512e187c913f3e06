"""Batches that are halved where memory runs out."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from distill.core.tensor_cache import TensorCache

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class AdaptiveBatch:
    """Number of rows that run together: at most ``size``, halved whenever the memory does not suffice.

    A size that was found to fit is kept for later calls.

    Args:
        size: of a batch, to begin with.
        caches: emptied before the batch is halved.
    """

    def __init__(self, size: int, caches: Iterable[TensorCache] = ()) -> None:
        self.size, self.caches = size, tuple(caches)

    def run(self, work: Callable[[slice], Result], rows: int) -> list[Result]:
        """Calls ``work`` on successive slices of ``rows`` rows; returns its results in order.

        Raises:
            torch.OutOfMemoryError: when a single row does not fit.
        """
        results: list[Result] = []
        first, emptied = 0, False
        while first < rows:
            last = min(first + self.size, rows)
            try:
                results.append(work(slice(first, last)))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                full = not emptied and any(self.caches)  # once for each batch, because the work fills them again
                if not _is_out_of_memory(error) or (last - first == 1 and not full):
                    raise
            else:
                first, emptied = last, False
                continue
            # Outside the handler: until it is left, the error's traceback holds on to the tensors that did not fit.
            self._make_room(last - first, full)
            emptied = True
        return results

    def _make_room(self, rows: int, full: bool) -> None:
        """Empties the caches if they are full, and else halves the batch."""
        if full:
            for cache in self.caches:
                cache.clear()
            log.warning("Out of memory with %d rows at a time; the caches were emptied.", rows)
        else:
            self.size = rows // 2
            log.warning("Out of memory with %d rows at a time; going on with %d.", rows, self.size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
