"""Checks of a training before labels are made."""

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint

from distill.core.errors import ConfigError
from distill.data.datamodule import PairDataModule
from distill.training.checkpoint import read_resumable
from distill.training.module import STEPS_PER_EPOCH
from distill.training.optimiser import OptimizerName, optimizer_of


def check_fit(trainer: Trainer, data: PairDataModule, resume_from: Path | None, optimizer: OptimizerName) -> None:
    """Checks that ``trainer`` can train on ``data``.

    Args:
        trainer: that is to be used.
        data: with both data sets.
        resume_from: the checkpoint that the training goes on from; None for a new training.
        optimizer: that trains.

    Raises:
        ConfigError: for a number that Lightning takes and cannot work with, fewer validation batches than processes, a
            precision that rounds coordinates, a training without steps or without end, fewer steps than ``find_lr`` tries, or a
            monitored figure that no validation measures. Where one goes on: for fewer epochs or steps than the checkpoint has,
            epochs of other steps than its, or another optimiser.
        WeightsError: when the checkpoint is damaged.
    """
    _check_numbers(trainer)
    _check_precision(trainer)
    _check_steps(trainer, data)
    _check_validation_batches(trainer, data)
    _check_search(trainer, data)
    _check_monitor(trainer)
    if resume_from is not None:
        checkpoint = read_resumable(resume_from)
        _check_length(trainer, checkpoint, resume_from)
        _check_steps_per_epoch(steps_per_epoch(trainer, data), checkpoint, resume_from)
        _check_optimizer(optimizer, checkpoint, resume_from)


def steps_per_epoch(trainer: Trainer, data: PairDataModule) -> int:
    """Returns the steps of the optimiser in an epoch, as Lightning will count them once it has the data."""
    return -(-_batches(trainer, data) // trainer.accumulate_grad_batches)


def _batches(trainer: Trainer, data: PairDataModule) -> int:
    """Returns the training batches of a process in an epoch."""
    pairs = -(-len(data.train) // (trainer.num_devices * trainer.num_nodes))  # type: ignore[arg-type]
    batches, limit = -(-pairs // data.batch_size), trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _check_numbers(trainer: Trainer) -> None:
    least = {"check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}
    for name, bound in least.items():
        value = getattr(trainer, name)
        if value is not None and value < bound:
            raise ConfigError(f"Expected trainer.{name} of at least {bound} but got {value}; correct it.")


def _check_precision(trainer: Trainer) -> None:
    """Raises for precisions that convert the whole batch, keypoints included."""
    if trainer.precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"Expected a trainer.precision that rounds no points but got {trainer.precision}, where 427 px are 428; set "
            "trainer.precision=bf16-mixed."
        )


def _check_steps(trainer: Trainer, data: PairDataModule) -> None:
    """Raises for a training after which no weights are kept, that is never validated, or whose schedule has no end."""
    if trainer.fast_dev_run:
        raise ConfigError(
            "Expected a training that keeps weights but trainer.fast_dev_run keeps none; use trainer=smoke."
        )
    batches, interval = _batches(trainer, data), trainer.val_check_interval
    if not batches:
        raise ConfigError(
            f"Expected batches to train on but got trainer.limit_train_batches={trainer.limit_train_batches}; raise it."
        )
    if trainer.max_steps == 0:
        raise ConfigError("Expected steps to train for but got trainer.max_steps=0; raise it, or leave it out.")
    if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > batches:
        raise ConfigError(
            f"Expected trainer.val_check_interval of at most the {batches} batches of an epoch but got {interval}; lower it."
        )
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ConfigError(
            "Expected an end of the training, to which the learning rate leads down, but got trainer.max_epochs=-1; set it, "
            "or trainer.max_steps."
        )


def _check_validation_batches(trainer: Trainer, data: PairDataModule) -> None:
    """Raises when a process has no validation batch: figures are averaged over all of them."""
    processes, pairs = trainer.num_devices * trainer.num_nodes, len(data.val)  # type: ignore[arg-type]
    batches = -(-pairs // data.batch_size)
    if batches < processes:
        smaller = max(1, pairs // processes)
        others = f", batch_size={smaller}" if smaller * processes <= pairs else ""
        raise ConfigError(
            f"Expected a validation batch for each of {processes} processes but got {batches} of {data.batch_size} pairs; "
            f"set val.n_pairs={processes * data.batch_size}{others} or trainer.devices={batches}."
        )


def _check_search(trainer: Trainer, data: PairDataModule) -> None:
    """Raises when the training ends before the search for a learning rate does, which then finds none without a word."""
    searches = [c for c in trainer.callbacks if isinstance(c, LearningRateFinder)]
    steps, epochs = steps_per_epoch(trainer, data), trainer.max_epochs
    if searches and epochs is not None and 0 <= epochs * steps < (wanted := searches[0]._num_training_steps):
        raise ConfigError(
            f"Expected at least {wanted} steps for find_lr but got {epochs * steps}; set lr, or "
            f"trainer.max_epochs={-(-wanted // max(1, steps))}."
        )


def _check_monitor(trainer: Trainer) -> None:
    monitored = [c.monitor for c in trainer.callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    if monitored and trainer.limit_val_batches == 0:
        raise ConfigError(
            f"Expected a validation for monitor={monitored[0]} but trainer.limit_val_batches=0 leaves it out; raise it, or "
            "leave monitor out."
        )
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if monitored and epochs is not None and every is not None and 0 <= epochs < every:
        raise ConfigError(
            f"Expected a validation in {epochs} epochs for monitor={monitored[0]} but there is one every {every}; set "
            "trainer.check_val_every_n_epoch=1."
        )


def _check_length(trainer: Trainer, checkpoint: dict[str, Any], resume_from: Path) -> None:
    for unit, limit, done in (
        ("epochs", trainer.max_epochs, checkpoint["epoch"] + 1),
        ("steps", trainer.max_steps, checkpoint["global_step"]),
    ):
        if limit is not None and 0 <= limit < done:
            raise ConfigError(
                f"Expected trainer.max_{unit} of at least {done}, the {unit} that {resume_from} has, but got {limit}; more "
                f"{unit} extend the training."
            )


def _check_steps_per_epoch(now: int, checkpoint: dict[str, Any], resume_from: Path) -> None:
    """Raises when epochs have other steps than before: the learning rate would not reach 0 with the last one, or long before."""
    steps, epochs = checkpoint["global_step"], max(1, checkpoint["epoch"] + 1)
    before = checkpoint.get(STEPS_PER_EPOCH)
    if before is None:  # of version 0.1; the last epoch may have been cut short
        before = now if (epochs - 1) * now < steps <= epochs * now else -(-steps // epochs)
    if now != before:
        raise ConfigError(
            f"Expected {before} steps an epoch, which the learning rate of {resume_from} goes by, but got {now}; set trainer.devices, "
            "trainer.accumulate_grad_batches, trainer.limit_train_batches and the data as they were, or another run.dir for a new training."
        )


def _check_optimizer(name: OptimizerName, checkpoint: dict[str, Any], resume_from: Path) -> None:
    before = optimizer_of(checkpoint)
    if name != before:
        raise ConfigError(
            f"Expected optimizer={before}, whose state {resume_from} has, but got {name}; set it, or run.resume=false for a "
            "new training."
        )
