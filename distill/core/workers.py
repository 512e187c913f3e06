"""Processes that load data."""

import sys
from types import TracebackType


def quiet_worker(number: int) -> None:
    """Leaves out tracebacks of connections that were lost because the process that loads for another outlives it.

    A ``worker_init_fn`` of :class:`torch.utils.data.DataLoader`. What goes wrong with the data reaches the other process by the
    loader, not by a printed traceback.

    Args:
        number: of the process.
    """
    sys.excepthook = _without_lost_connections


def _without_lost_connections(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
