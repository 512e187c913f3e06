"""One training, from start or checkpoint to the weights that are kept."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from distill.core.errors import ConfigError, DataError
from distill.core.protocols import Benchmark
from distill.data.datamodule import PairDataModule
from distill.labels.filtered import filter_benchmark
from distill.labels.filters import Criterion, Filtered
from distill.training.checkpoint import load_state, of_another_training, read_resumable
from distill.training.module import Distillation

UNUSED = "parameters that were not used in producing the loss"
"""What Lightning says of weights without a gradient, where the processes wait for the sum of all gradients."""


def filter_labels(
    module: Distillation,
    criteria: Mapping[str, Criterion],
    train: Benchmark,
    batch_size: int,
    device: str,
    progress: bool = True,
) -> str | None:
    """Weighs the training labels, if there are criteria or a curriculum; returns a summary to print.

    Args:
        module: that learns from the labels.
        criteria: by name.
        train: the labelled training pairs.
        batch_size: pairs at a time.
        device: where the criteria are computed.
        progress: whether to draw a bar.
    """
    if not criteria and module.curriculum is None:
        return None
    filtered = filter_benchmark(Filtered(module.teacher, criteria), train, batch_size, device, progress)
    confidence = filtered.all
    module.filtered = filtered
    if module.curriculum is not None:
        module.curriculum.calibrate(confidence)
    kept = (confidence > 0).float().mean()
    return f"{len(confidence)}, {kept:.0%} kept, mean confidence {confidence.mean():.2f}"


def run_fit(trainer: Trainer, *arguments: Any, ckpt_path: str | None) -> None:
    """Calls ``trainer.fit``, and raises ``KeyboardInterrupt`` after Ctrl-C, which Lightning answers with ``SystemExit``.

    Raises:
        ConfigError: when several processes train and no loss reaches some of the weights.
        WeightsError: when the checkpoint to go on from is damaged, hostile, or of another training.
    """
    if ckpt_path is not None:
        read_resumable(ckpt_path)  # an error of one line, before Lightning's
    try:
        trainer.fit(*arguments, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except Exception as error:  # of any type, where a checkpoint is of another training; others go on as they are
        if UNUSED in str(error):
            raise ConfigError(
                "Expected losses that reach all weights, since several processes train, but some get no gradient; add a loss "
                "that reaches them, leave that part of the student out, or set "
                "trainer.strategy=ddp_find_unused_parameters_true."
            ) from error
        if ckpt_path is None or not _while_restoring(error):
            raise
        raise of_another_training(ckpt_path, error) from error


def _while_restoring(error: Exception) -> bool:
    """Returns whether Lightning was reading a checkpoint when it failed, rather than training."""
    return any("checkpoint_connector" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def resumed_from(checkpoint: ModelCheckpoint, resume: bool) -> Path | None:
    """Returns the file that a training goes on from; None for a new training, or one that has no whole epoch yet."""
    assert checkpoint.dirpath is not None
    last = Path(checkpoint.dirpath) / "last.ckpt"
    return last if resume and last.is_file() else None


def train(
    trainer: Trainer, module: Distillation, data: PairDataModule, checkpoint: ModelCheckpoint, resume: bool
) -> None:
    """Trains, and leaves the weights that ``checkpoint`` kept in ``module``.

    Where several processes train, their process group is closed afterwards; what follows runs in each without the others.

    Args:
        trainer: with ``checkpoint`` among its callbacks.
        module: that is trained.
        data: pairs.
        checkpoint: see :func:`distill.training.callbacks.build.checkpoints`.
        resume: whether to go on from ``last.ckpt`` beside it, where there is one.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        WeightsError: when the checkpoint to go on from is damaged, or holds more than tensors and plain values.
        DataError: when no weights were kept.
    """
    last = resumed_from(checkpoint, resume)
    run_fit(trainer, module, data, ckpt_path=None if last is None else str(last))
    if distributed.is_initialized():
        trainer.strategy.barrier()
        distributed.destroy_process_group()
    # A checkpoint that was gone on from names the best one so far; what it says of its folder is not followed.
    best = Path(str(checkpoint.dirpath), Path(checkpoint.best_model_path).name)
    if not best.is_file():
        raise DataError("Expected weights that were kept but there are none; raise trainer.max_epochs.")
    load_state(module, best)
