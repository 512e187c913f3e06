"""What is refused before a training begins, and before labels are made for it."""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from trainings import QUIET

from distill.core.errors import ConfigError
from distill.data.datamodule import PairDataModule
from distill.data.datasets.shapes import ShapesPairs
from distill.training.callbacks.build import callbacks, checkpoints
from distill.training.checks import check_fit


def processes(devices: int, **options) -> Trainer:
    """A trainer for several processes, of which none is started."""
    strategy = "ddp" if devices > 1 else "auto"
    options = {"logger": False, "enable_checkpointing": False, **QUIET, **options}
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, **options)


def test_fewer_validation_batches_than_processes_are_refused():
    train, val = ShapesPairs("train", 64, 0, 32), ShapesPairs("val", 40, 0, 32)
    data = PairDataModule(train, val, batch_size=16)  # type: ignore[arg-type]
    assert check_fit(processes(3), data, None, "adamw") is None
    with pytest.raises(
        ConfigError, match="batch for each of 4 processes but got 3 of 16 pairs.*val.n_pairs=64.*batch_size=10"
    ):
        check_fit(processes(4), data, None, "adamw")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_round_the_points_are_refused(precision):
    pairs = ShapesPairs("train", 8, 0, 32)
    with pytest.raises(ConfigError, match=f"rounds no points but got {precision}"):
        check_fit(processes(1, precision=precision), PairDataModule(pairs, pairs, 4), None, "adamw")  # type: ignore[arg-type]


def test_a_figure_that_no_validation_measures_is_refused(tmp_path):
    pairs, checkpoint = ShapesPairs("train", 8, 0, 32), checkpoints(tmp_path, "val/pck@0.10")
    options = {"max_epochs": 1, "check_val_every_n_epoch": 2, "callbacks": [checkpoint], "logger": False, **QUIET}
    trainer, data = Trainer(accelerator="cpu", **options), PairDataModule(pairs, pairs, 4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="validation in 1 epochs for monitor=val/pck@0.10 but .* every 2"):
        check_fit(trainer, data, None, "adamw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast_dev_run": True}, "trainer.fast_dev_run keeps none; .*trainer=smoke"),
        ({"limit_train_batches": 0}, "batches to train on but got trainer.limit_train_batches=0"),
        ({"limit_train_batches": 0.4}, "batches to train on but got trainer.limit_train_batches=0.4"),
        ({"max_steps": 0}, "steps to train for but got trainer.max_steps=0"),
        ({"val_check_interval": 3}, "val_check_interval of at most the 2 batches of an epoch but got 3"),
        (
            {"limit_val_batches": 0},
            "a validation for monitor=val/pck@0.10 but trainer.limit_val_batches=0 leaves it out",
        ),
        ({"max_epochs": -1}, "an end of the training, .* trainer.max_epochs=-1"),
        ({"max_epochs": -1, "max_time": "00:00:01:00"}, "an end of the training, .* trainer.max_epochs=-1"),
    ],
)
def test_a_training_that_keeps_no_weights_is_refused(tmp_path, options, message):
    pairs, checkpoint = ShapesPairs("train", 8, 0, 32), checkpoints(tmp_path, "val/pck@0.10")
    trainer = Trainer(accelerator="cpu", callbacks=[checkpoint], logger=False, **{"max_epochs": 2} | options | QUIET)
    with pytest.raises(ConfigError, match=message):
        check_fit(trainer, PairDataModule(pairs, pairs, 4), None, "adamw")  # type: ignore[arg-type]


def test_the_best_weights_are_found_again_where_the_folder_was_moved(tmp_path):
    before, after = (checkpoints(tmp_path / name, "val/pck@0.10") for name in ("before", "after"))
    best = str(tmp_path / "before" / "checkpoints" / "best.ckpt")
    before.best_model_path = before.kth_best_model_path = best
    before.best_model_score, before.best_k_models = torch.tensor(3.0), {best: torch.tensor(3.0)}
    after.load_state_dict(before.state_dict())
    moved = best.replace("before", "after")
    assert after.best_model_path == after.kth_best_model_path == moved
    assert after.best_model_score == 3 and after.best_k_models == {moved: 3} and after.last_model_path == ""
    lightnings = ModelCheckpoint(tmp_path, "best", monitor="val/pck@0.10", mode="max")
    assert after.state_key == lightnings.state_key, "runs of earlier versions are resumed"


@pytest.mark.parametrize(
    ("epochs", "accumulated", "fits"), [(49, 1, False), (50, 1, True), (98, 2, False), (-1, 1, True)]
)
def test_a_search_for_a_learning_rate_needs_a_hundred_steps(tmp_path, epochs, accumulated, fits):
    pairs, beside = ShapesPairs("train", 8, 0, 32), callbacks(checkpoints(tmp_path, None), find_lr=True)[:-1]
    options = {"max_epochs": epochs, "max_steps": 200, "accumulate_grad_batches": accumulated}
    trainer = Trainer(accelerator="cpu", callbacks=beside, logger=False, **options, **QUIET)
    data = PairDataModule(pairs, pairs, 4)  # type: ignore[arg-type]
    if fits:
        check_fit(trainer, data, None, "adamw")
    else:
        with pytest.raises(
            ConfigError, match="at least 100 steps for find_lr but got 98; .* trainer.max_epochs=(50|100)"
        ):
            check_fit(trainer, data, None, "adamw")


def test_settings_of_what_runs_beside_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="ema, a decay"):
        callbacks(checkpoints(tmp_path, None), ema=1.0)
    with pytest.raises(ConfigError, match="one average of the weights but got ema=0.99 and callbacks.mine"):
        callbacks(checkpoints(tmp_path, None), ema=0.99, others={"mine": StochasticWeightAveraging(1e-3)})
    assert callbacks(checkpoints(tmp_path, None), others={"mine": StochasticWeightAveraging(1e-3)})
    with pytest.raises(ConfigError, match="a monitor whose progress counts"):
        callbacks(checkpoints(tmp_path, None), patience=3)
