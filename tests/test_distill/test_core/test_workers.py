import sys

from distill.core.workers import quiet_worker
from distill.data.datamodule import PairDataModule
from distill.data.datasets.shapes import ShapesPairs


def test_a_loading_process_whose_starter_has_ended_prints_no_traceback(capsys, monkeypatch):
    """After Ctrl-C, pretrain ended with the right code and word, and a traceback of a loading process below them."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    quiet_worker(0)
    sys.excepthook(ConnectionResetError, ConnectionResetError(104, "reset by peer"), None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("told"), None)
    assert "ValueError: told" in capsys.readouterr().err


def test_the_loaders_of_a_training_are_quiet():
    pairs = ShapesPairs(size=32, split="val", n_pairs=2)
    data = PairDataModule(pairs, pairs, 2)
    assert data.train_dataloader().worker_init_fn is data.val_dataloader().worker_init_fn is quiet_worker
