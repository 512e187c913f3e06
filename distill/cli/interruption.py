"""Ending a command early: SIGTERM as an exception."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """The process was asked to end by SIGTERM, as batch systems do."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raises :class:`Terminated` on SIGTERM inside the context, once; a second signal does not disturb the shutdown.

    Lightning calls a handler that was there before its own, so that a training ends in order as well.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        """Raises :class:`Terminated`, and ignores further signals."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
