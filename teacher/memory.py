"""Bounded memory: batches that are halved, and caches that are bounded by bytes."""

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from cachetools import LRUCache
from torch import Tensor

Result = TypeVar("Result")
log = logging.getLogger(__name__)

GIB = 2**30


class TensorCache(LRUCache[Hashable, Any]):
    """A dictionary bounded by the bytes of the tensors in its values. The least recently used are dropped.

    A value that is larger than the bound is not kept.

    Args:
        size: bound, GiB; 0 keeps nothing.
    """

    def __init__(self, size: float) -> None:
        super().__init__(maxsize=size * GIB, getsizeof=tensor_bytes)

    def __setitem__(self, key: Hashable, value: Any) -> None:
        if tensor_bytes(value) <= self.maxsize:
            super().__setitem__(key, value)


def tensor_bytes(value: Any) -> int:
    """Returns the bytes of a tensor, or of all tensors in a nested sequence."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


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
