"""Small trainings of a small student on pictures of shapes."""

from lightning import Callback, Trainer, seed_everything

from distill.data.datamodule import PairDataModule
from distill.data.datasets.shapes import ShapesPairs
from distill.losses import CoordinateHuber, HeatmapKL
from distill.matchers.oracle import Oracle
from distill.training.callbacks.build import callbacks, checkpoints
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.seeding import BatchSeed
from distill.training.checks import check_fit
from distill.training.module import Distillation
from distill.training.optimiser import OptimizerName
from student import StudentMatcher

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def distillation(lr: float = 3e-3, optimizer: OptimizerName = "adamw", **weights) -> Distillation:
    seed_everything(0, verbose=False)
    student = StudentMatcher("test_resnet", strides=[8, 16], width=32)
    losses = {"heatmap": HeatmapKL(1.0), "points": CoordinateHuber()}
    weights = weights or {"heatmap": 1.0, "points": 1.0}
    return Distillation(student, Oracle(), losses, weights, None, lr, 0.0, optimizer=optimizer)


def fit(module: Distillation, folder, max_epochs: int, **options) -> Trainer:
    pairs = ShapesPairs("train", 8, 0, 64)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=JsonLines(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        log_every_n_steps=1,
        check_val_every_n_epoch=max_epochs,
        **options,
    )
    trainer.fit(module, PairDataModule(pairs, pairs, batch_size=8))  # type: ignore[arg-type]
    return trainer


class Stop(Exception):
    """Ends a training where a test wants it to end."""


class StopAt(Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.place = (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            raise Stop


def trained(folder, max_epochs: int, every: int = 2, stop=None, resume: bool = False, **options):
    """A training on eight pairs in batches of three, with averaged weights; returns module and checkpoint."""
    optimizer = options.pop("optimizer", "adamw")
    module, checkpoint = distillation(lr=1e-2, optimizer=optimizer), checkpoints(folder, None)
    teaching = options.pop("self_distillation", None)
    loading = {name: options.pop(name) for name in ("unlabelled", "num_workers") if name in options}
    extra = [BatchSeed(0), *([StopAt(*stop)] if stop else [])]
    chosen = [*callbacks(checkpoint, ema=0.9, self_distillation=teaching)[:-1], *extra]
    pairs = ShapesPairs("train", 8, 0, 64)
    options = {"check_val_every_n_epoch": every, "logger": False, "callbacks": chosen, **QUIET, **options}
    trainer = Trainer(max_epochs=max_epochs, accelerator="cpu", **options)
    data = PairDataModule(pairs, pairs, batch_size=3, **loading)  # type: ignore[arg-type]
    last = folder / "checkpoints" / "last.ckpt"
    check_fit(trainer, data, last if resume else None, optimizer)
    trainer.fit(module, data, ckpt_path=last if resume else None, weights_only=True)
    return module, checkpoint
