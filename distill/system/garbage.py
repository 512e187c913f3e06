"""Python's search for reference cycles, paused."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Pauses the search for unreachable reference cycles, for work that makes many small objects and keeps most of them.

    Imports of large libraries and traced graphs are such work: some 700 new objects start a search, which finds little.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
