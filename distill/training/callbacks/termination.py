"""SIGTERM during a training."""

import signal
import threading
from typing import Any

from lightning import Callback, LightningModule, Trainer


class OwnTermination(Callback):
    """Leaves SIGTERM to the handler that the program has set before the training, if there is one.

    Lightning's handler calls it too, but sends a value to the other processes first. Where these wait for gradients at that
    moment, or for a file to be written, all processes wait for ever.
    """

    def __init__(self) -> None:
        self._handler: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes note of the handler, before Lightning sets its own."""
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the handler again."""
        self._set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the handler again, where no validation came first."""
        self._set()

    def _set(self) -> None:
        if callable(self._handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)
