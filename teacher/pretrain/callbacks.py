"""Callbacks of the diffusion model's training: averaged weights, and snapshots of the pipeline."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from distill.core.errors import ConfigError
from teacher.pretrain.diffusion import DiffusionTraining
from teacher.pretrain.pipeline import assemble, draw_grid, save_pipeline

LOWER_RATE = 0.7
"""Factor on the learning rate each time the weights became NaN or infinite."""


class FiniteWeightAveraging(EMAWeightAveraging):
    """Exponential moving average of the weights, restored to its last finite state when it becomes NaN or infinite.

    The training then continues from that state with 0.7 of the learning rate and a reset optimiser. In half precision with
    a high learning rate this happens once in some thousand steps.

    Args:
        decay: of the average, per step.
        every: steps between two updates; updating at each step takes 5 % of the time on two cores.
        check_every: steps between two checks of the average.

    Raises:
        ConfigError: when the average is not finite and the training began with weights that were not.
    """

    def __init__(self, decay: float, every: int = 10, check_every: int = 100) -> None:
        super().__init__(decay=decay**every, update_every_n_steps=every)
        self.check_every = check_every
        self._good: list[Tensor] | None = None
        self._lr_scale, self._restarted_at = 1.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets ``lr_scale`` and ``restarted_at`` of the module, from the checkpoint if there was one."""
        assert isinstance(pl_module, DiffusionTraining)
        pl_module.lr_scale, pl_module.restarted_at = self._lr_scale, self._restarted_at
        if _finite(self._averages()):
            self._good = [value.clone() for value in self._averages()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Updates the average, and checks it every ``check_every`` steps."""
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step % self.check_every == 0:
            self._check(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swaps the average in after a check, so that what is validated and written is finite."""
        self._check(trainer, pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the average, checked, to the module."""
        self._check(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Returns the average's state, with the learning rate's factor and the step of the last restart."""
        return {**super().state_dict(), "lr_scale": self._lr_scale, "restarted_at": self._restarted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._lr_scale, self._restarted_at = state_dict["lr_scale"], state_dict["restarted_at"]

    def _averages(self) -> list[Tensor]:
        assert self._average_model is not None
        return [parameter.detach() for parameter in self._average_model.module.parameters()]

    @torch.no_grad()
    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionTraining)
        averages = self._averages()
        if _finite(averages):
            self._good = [value.clone() for value in averages]
            return
        if self._good is None:
            raise ConfigError(
                "Expected finite weights but those that the training started from are not; start anew, or from others."
            )
        for average, current, good in zip(averages, pl_module.parameters(), self._good, strict=True):
            average.copy_(good)
            current.copy_(good)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        self._lr_scale, self._restarted_at = self._lr_scale * LOWER_RATE, trainer.global_step
        pl_module.lr_scale, pl_module.restarted_at = self._lr_scale, self._restarted_at


def _finite(values: list[Tensor]) -> bool:
    return bool(torch.stack(torch._foreach_norm(values)).isfinite().all())


class Snapshot(Callback):
    """Writes the pipeline folder and a grid of drawn pictures at every validation and at the end.

    At both times the averaged weights are in: Lightning swaps them in for a validation, and for good after the last step.

    Args:
        folder: gets ``pipeline/`` (overwritten each time) and ``samples/<step>.png``.
        captions: what to draw.
        seed: of the drawing's noise, the same each time.
    """

    def __init__(self, folder: Path, captions: list[str], seed: int) -> None:
        self.folder, self.captions, self.seed = folder, captions, seed

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes a snapshot of the averaged weights."""
        assert isinstance(pl_module, DiffusionTraining)
        self.write(pl_module, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes a snapshot of the final weights."""
        assert isinstance(pl_module, DiffusionTraining)
        self.write(pl_module, trainer.global_step)

    def write(self, module: DiffusionTraining, step: int) -> None:
        """Writes ``pipeline/`` from the module's parts, and the pictures that it draws as ``samples/<step>.png``."""
        save_pipeline(module, self.folder / "pipeline")
        samples = self.folder / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        grid = draw_grid(assemble(module), self.captions, self.seed)
        grid.save(samples / f"{step:06d}.png")
