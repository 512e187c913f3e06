"""What is written while the diffusion model trains."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from teacher.pretrain.diffusion import DiffusionTraining
from teacher.pretrain.pipeline import assemble, draw_grid, save_pipeline


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
        """Writes what there is so far."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the result."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionTraining)
        save_pipeline(pl_module, self.folder / "pipeline")
        samples = self.folder / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        grid = draw_grid(assemble(pl_module), self.captions, self.seed)
        grid.save(samples / f"{trainer.global_step:06d}.png")
