"""Work in chunks that fit the memory."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class AdaptiveBatch:
    """How many rows run together: at most ``size``, halved whenever the memory does not suffice.

    What has been found to fit is kept for later calls.

    Args:
        size: of a chunk, to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[slice], Result], rows: int) -> list[Result]:
        """Calls ``work`` on successive slices of ``rows`` rows; returns its results in order.

        Raises:
            torch.OutOfMemoryError: when a single row does not fit.
        """
        results: list[Result] = []
        first = 0
        while first < rows:
            last = min(first + self.size, rows)
            try:
                results.append(work(slice(first, last)))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or last - first == 1:
                    raise
                self.size = (last - first) // 2
            else:
                first = last
                continue
            # Outside the handler: until it is left, the error's traceback holds on to the tensors that did not fit.
            log.warning("Out of memory with %d rows at a time; going on with %d.", last - first, self.size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
