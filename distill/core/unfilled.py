"""Building networks whose weights follow from a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FOLLOWING = ContextVar("weights of what is built follow from a file", default=False)


def weights_follow() -> bool:
    """Returns whether what is built now is filled from a file later, so that nothing needs to be computed from its weights."""
    return _FOLLOWING.get()


@contextmanager
def weights_following() -> Iterator[None]:
    """Within it :func:`weights_follow` holds."""
    token = _FOLLOWING.set(True)
    try:
        yield
    finally:
        _FOLLOWING.reset(token)
