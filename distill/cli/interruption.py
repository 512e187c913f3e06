"""Ending a command early: SIGTERM as an exception, and further processes that end with the first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

STARTER = "DISTILL_STARTED_BY"
"""The environment variable in which a process that starts further ones leaves its number to them."""
CHECKED_EVERY = 0.5  # seconds


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


def interruption_behind(error: BaseException) -> BaseException | None:
    """Returns the Ctrl-C or SIGTERM during whose handling ``error`` was raised, or None.

    A batch system sends SIGTERM to loading processes as well, about whose end torch raises an error of its own.
    """
    context: BaseException | None = error
    while context is not None and not isinstance(context, KeyboardInterrupt | Terminated):
        context = context.__context__
    return context


def may_start_others() -> None:
    """Tells the processes that this one starts from now on who started them."""
    if not is_started():
        os.environ[STARTER] = str(os.getpid())


@cache
def is_started() -> bool:
    """Returns whether another process of the same command has started this one; asked first while that one lives."""
    return os.environ.get(STARTER) == str(os.getppid())


def end_with_starter() -> None:
    """Ends this process by SIGTERM when the one that started it is gone, whatever has ended that."""
    if is_started():
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def starter_ended() -> bool:
    """Returns whether this process was started by another of the same command that is gone, or is within five seconds."""
    deadline = time.monotonic() + 5
    while is_started() and time.monotonic() < deadline:
        if os.environ.get(STARTER) != str(os.getppid()):
            return True
        time.sleep(0.05)
    return False


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(CHECKED_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
