"""SIGTERM during a training."""

import signal

import pytest
from lightning import Callback
from trainings import distillation, fit

from distill.training.callbacks.termination import OwnTermination


class Seen(Callback):
    """Keeps the handler of SIGTERM that is set in a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.handler = signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("own", [True, False])
def test_the_programs_own_handler_of_sigterm_stays_as_it_is(tmp_path, own):
    """Lightning's sent a value to processes that waited for another, and a training of two that was stopped did not end."""

    def stop(number, frame):
        """Stands for the handler of the command line."""

    before = signal.signal(signal.SIGTERM, stop if own else signal.SIG_DFL)
    try:
        seen = Seen()
        fit(distillation(), tmp_path, 1, callbacks=[OwnTermination(), seen])
        assert (seen.handler is stop) == own and callable(seen.handler)
        assert signal.getsignal(signal.SIGTERM) is (stop if own else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGTERM, before)
