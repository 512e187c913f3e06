"""Train a student on a teacher's labels.

Labels are read from the store, or made on the fly and written through to it. The run's folder gets the training curve
(metrics.jsonl), a resumable checkpoint, the student (student.safetensors), its ONNX file, and a comparison of teacher,
student and baselines on test pairs (metrics.json, report.md, report.html). The checkpoint that agrees best with the
teacher on the validation pairs is kept: choosing needs no annotation.

Examples:
  python -m distill fit
  python -m distill fit data=cub data.root=CUB_200_2011 student.backbone=mobilenetv2_100 train.n_pairs=500
"""

from pathlib import Path

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig, OmegaConf
from torch import distributed, nn

from distill.commands.compare import print_table, write_reports
from distill.commands.launch import check_command_line, is_first_process, is_many
from distill.comparison import Comparison, compare
from distill.config import instantiate
from distill.data.datamodule import PairDataModule
from distill.datasets import pairs_of
from distill.environment import choose_device
from distill.errors import DataError
from distill.export import export_student
from distill.labelling import label
from distill.matchers.box_relative import BoxRelative
from distill.matchers.cached import Cached
from distill.run import RunFolder
from distill.student_file import save_student
from distill.training.log import JsonLines
from distill.training.module import Distillation
from distill.training.seeding import BatchSeed

MONITOR = "val/pck_teacher@0.10"


def run(cfg: DictConfig) -> Comparison | None:
    """Trains, saves, exports and compares; returns the comparison, if test pairs were asked for."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    if is_many(cfg):
        check_command_line()
    device = choose_device(cfg.device)
    train, val = (pairs_of(cfg.data, split, cfg[split].n_pairs) for split in ("train", "val"))
    student: nn.Module = instantiate(cfg.student)
    test = pairs_of(cfg.data, "test", cfg.test.n_pairs) if cfg.test.n_pairs else None
    baseline = instantiate(cfg.baseline)
    teacher = Cached(cfg.labels.dir, instantiate(cfg.teacher), offers=list(cfg.labels.offers))
    first = is_first_process()
    folder = RunFolder.create(cfg, resume=cfg.run.resume) if first else RunFolder(cfg.run.dir)
    for pairs in filter(None, (train, val, test)):
        label(teacher, pairs, device, progress=first)
    module = _distillation(cfg, student, teacher)
    _train(cfg, folder, module, PairDataModule(train, val, cfg.batch_size, cfg.num_workers, cfg.seed))  # type: ignore[arg-type]
    if not first:
        return None
    student = module.student.cpu().eval()
    config = {**OmegaConf.to_container(cfg.student, resolve=True), "size": cfg.data.size}  # type: ignore[dict-item]
    save_student(student, config, folder / "student.safetensors")
    deviation = export_student(student, folder / "student.onnx", cfg.data.size, config)
    print(
        f"student: {folder / 'student.safetensors'}\nONNX:    {folder / 'student.onnx'} "
        f"(differs from torch by at most {deviation.points_px:.2g} px)"
    )
    if test is None:
        return None
    matchers = {"teacher": teacher, "student": student, "nearest_neighbour": baseline, "box_relative": BoxRelative()}
    comparison = compare(matchers, test)
    comparison.notes.append("The teacher's answers were read from its labels; python -m distill compare times it.")
    write_reports(folder, comparison, test)
    print_table(comparison)
    return comparison


def _distillation(cfg: DictConfig, student: nn.Module, teacher: Cached) -> Distillation:
    return Distillation(
        student,
        teacher,
        losses=instantiate(cfg.loss.terms),
        weights=OmegaConf.to_container(cfg.loss.weights),  # type: ignore[arg-type]
        augment=instantiate(cfg.augment),
        lr=cfg.lr,
        weight_decay=cfg.weight_decay,
    )


def _train(cfg: DictConfig, folder: RunFolder, module: Distillation, data: PairDataModule) -> None:
    """Trains, and leaves the best student in ``module``; where several processes train, they end here."""
    where = {"dirpath": folder.path / "checkpoints", "enable_version_counter": False}
    checkpoint = ModelCheckpoint(**where, filename="best", monitor=MONITOR, mode="max")
    resumable = ModelCheckpoint(**where, filename="last", every_n_epochs=1, save_on_train_epoch_end=True)
    callbacks: list[Callback] = [BatchSeed(cfg.seed), checkpoint, resumable, RichProgressBar(leave=False)]
    trainer: Trainer = instantiate(
        cfg.trainer, logger=JsonLines(folder.path), callbacks=callbacks, default_root_dir=str(folder.path)
    )
    last = folder.path / "checkpoints" / "last.ckpt"
    resumed = str(last) if cfg.run.resume and last.is_file() else None
    trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if distributed.is_initialized():
        trainer.strategy.barrier()
        distributed.destroy_process_group()  # what follows is the first process's business alone
    best = Path(checkpoint.best_model_path)
    if not best.is_file():
        raise DataError("Expected a validation during training but there was none; raise trainer.max_epochs.")
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
