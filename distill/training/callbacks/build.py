"""The callbacks of a training, built from its settings."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from distill.core.errors import ConfigError
from distill.training.callbacks.find_lr import FindLearningRate
from distill.training.callbacks.progress import TrainingProgress
from distill.training.callbacks.termination import OwnTermination
from distill.training.module import TOTAL


class _MovableCheckpoint(ModelCheckpoint):
    """Finds the files that it kept where the run's folder was moved: of the paths in a checkpoint the names count."""

    @property
    def state_key(self) -> str:
        """See Lightning's; the same as of its class, so that runs of earlier versions are resumed."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what ``state_dict`` returned in any folder."""
        here = {name: self._here(state_dict.get(name)) for name in _PATHS}
        models = {self._here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(state_dict | here | {"best_k_models": models, "dirpath": self.dirpath})

    def _here(self, path: str | None) -> str:
        return str(Path(str(self.dirpath), Path(path).name)) if path else ""


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def checkpoints(folder: Path, monitor: str | None, losses: Iterable[str] = ()) -> ModelCheckpoint:
    """Returns the callback that keeps the weights with the best value of ``monitor``; without it, the last ones.

    The best value of a loss is the lowest, that of any other figure the highest.

    The last ones are written after every epoch, whether or not it was validated.

    Args:
        folder: of the run.
        monitor: a key that validation logs.
        losses: names of the losses that are summed to ``loss``.
    """
    name = "best" if monitor else "final"
    mode = "min" if monitor in {f"val/{loss}" for loss in (*losses, TOTAL)} else "max"
    # Without a counter: a resumed training would write new files beside the old ones, which would be resumed from again.
    options: dict[str, Any] = {"monitor": monitor, "mode": mode, "enable_version_counter": False}
    if monitor is None:
        options |= {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    return _MovableCheckpoint(folder / "checkpoints", name, **options)


def resumable(folder: Path) -> ModelCheckpoint:
    """Returns the callback that writes, after every epoch, what a training needs to be resumed.

    ``save_last`` is not used because it writes only when the best weights are written.

    Args:
        folder: of the checkpoints.
    """
    options: dict[str, Any] = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "enable_version_counter": False}
    return _MovableCheckpoint(folder, "last", **options)


def callbacks(
    checkpoint: ModelCheckpoint,
    ema: float | None = None,
    patience: int | None = None,
    find_lr: bool = False,
    self_distillation: Callback | None = None,
    pictures: Callback | None = None,
    others: Mapping[str, Callback] | None = None,
    then: str = "",
) -> list[Callback]:
    """Returns all callbacks, in the order that they need.

    Args:
        checkpoint: see :func:`checkpoints`.
        ema: decay of the exponential moving average of the weights, which is validated and kept; None for none.
        patience: validations without progress after which training stops; None for never.
        find_lr: whether to try learning rates for 100 steps first, and take the one that lowers the loss fastest.
        self_distillation: goes before the averaging, see :class:`distill.training.callbacks.self_distillation.SelfDistillation`.
        pictures: see :class:`distill.training.callbacks.match_pictures.MatchPictures`.
        others: by name.
        then: what comes after the training, see :class:`distill.training.callbacks.progress.TrainingProgress`.

    Raises:
        ConfigError: for a decay outside (0, 1), beside another average of the weights, or early stopping without anything to watch.
    """
    if ema is not None and not 0 < ema < 1:
        raise ConfigError(
            f"Expected ema, a decay, in (0, 1) but got {ema}; 0.99 suits short trainings, 0.999 long ones."
        )
    if patience is not None and (checkpoint.monitor is None or patience < 1):
        raise ConfigError(
            f"Expected patience of at least 1 and a monitor whose progress counts but got {patience} and "
            f"{checkpoint.monitor}; set monitor=val/pck_teacher@0.10."
        )
    for name, callback in (others or {}).items():
        if ema is not None and isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            raise ConfigError(
                f"Expected one average of the weights but got ema={ema} and callbacks.{name}, which would not be kept; set ema=null."
            )
    chosen: list[Any] = [
        OwnTermination(),
        self_distillation,
        pictures,
        EMAWeightAveraging(decay=ema) if ema is not None else None,
        EarlyStopping(checkpoint.monitor, mode=checkpoint.mode, patience=patience) if patience is not None else None,
        FindLearningRate() if find_lr else None,
        *(others or {}).values(),
        checkpoint,
        resumable(Path(checkpoint.dirpath)),
        TrainingProgress(then=then),
    ]
    return [callback for callback in chosen if callback is not None]
