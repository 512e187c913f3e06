"""Ending a command early: SIGTERM as an exception, and processes of one command that end together."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType

STARTER = "DISTILL_STARTED_BY"
"""The environment variable in which a process that starts further ones leaves its number to them."""
CHECKED_EVERY = 0.5  # seconds
SECONDS_TO_END = 60.0
"""Seconds that a process has to write what it made. One that waits for the others inside a library hears no signal but SIGKILL."""
TOLD_TO_END = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes after Ctrl-C or SIGTERM."""
_started: list[subprocess.Popen] = []
"""The further processes that this one has started and that are to end with it."""


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
        """Raises :class:`Terminated`, and ignores further signals.

        Nor does torch tell of loading processes that end now, which may get the signal too: its error came while Python ended.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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


def end_with_started(processes: Sequence[subprocess.Popen]) -> None:
    """Ends this process by SIGTERM when one of those that it has started fails, so that it still writes what it made."""
    _started[:] = processes
    if _started:
        threading.Thread(target=_watch_started, daemon=True).start()


def failure_of_started() -> str | None:
    """Returns which of the started processes failed and how, in words; None where none did, or they were told to end."""
    for number, process in enumerate(_started, 1):
        code = process.poll() or 0
        if code not in (0, *TOLD_TO_END):
            ended = (
                f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}, see above"
            )
            why = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
            return f"process {number} of {len(_started) + 1} {ended}{why}"
    return None


def while_exchanging(error: BaseException) -> bool:
    """Returns whether an error was raised while processes exchanged values, as when the connection to one is lost.

    NCCL and the store have types of their own for it. Gloo raises a plain ``RuntimeError``, which only its place tells.
    """
    distributed = sys.modules.get("torch.distributed")  # which the command line does not import for this
    if isinstance(error, getattr(distributed, "DistError", ())):
        return True
    room = os.path.join("torch", "distributed", "")
    return any(room in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def other_ended(seconds: float) -> bool:
    """Returns whether another process of the command is gone that should not be, or is within some seconds.

    That is the one that started this one, or one that this one started and that failed. A connection that is lost is seen
    before the end of the process behind it.
    """
    deadline = time.monotonic() + seconds
    while (_started or is_started()) and time.monotonic() < deadline:
        if _one_ended() or (is_started() and os.environ.get(STARTER) != str(os.getppid())):
            return True
        time.sleep(0.05)
    return False


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(CHECKED_EVERY)
    _end()


def _watch_started() -> None:
    while not _one_ended():
        if all(process.poll() == 0 for process in _started):
            return
        time.sleep(CHECKED_EVERY)
    _end()


def _one_ended() -> bool:
    """Returns whether one of the started processes has ended before its time."""
    return any(process.poll() for process in _started)


def _end() -> None:
    """Ends this process by SIGTERM, and by SIGKILL where that has no effect; those that it started end by themselves."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # else it is ending already, in its own way
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os.kill(os.getpid(), signal.SIGKILL)
