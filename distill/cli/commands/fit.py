"""Train a student on a teacher's labels.

Labels are read from the store, or made on the fly and written through to it; for training pairs only where the student
learns from them. The run's folder gets the training curve (metrics.jsonl), a resumable checkpoint, the student
(student.safetensors), its ONNX file, and a comparison of teacher, student and baselines on test pairs (metrics.json,
report.md, report.html). The last weights are kept, or those with the best value of monitor=; val/pck_teacher@0.10, the
agreement with the teacher on the validation pairs, needs no annotation.

Examples:
  python -m distill fit
  python -m distill fit data=cub data.root=CUB_200_2011 student.backbone=mobilenetv2_100 train.n_pairs=500
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import distributed, nn

from distill.cli.commands.compare import print_table, write_reports
from distill.cli.config import instantiate
from distill.cli.datasets import pairs_of
from distill.cli.processes import check_command_line, is_first_process, is_many
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError, DataError
from distill.core.protocols import Benchmark
from distill.data.datamodule import PairDataModule
from distill.evaluation.compare import Comparison, compare
from distill.export.onnx import export_student
from distill.export.student_file import load_into, read_student_file, save_student
from distill.labels.cached import Cached
from distill.labels.filters import Criterion, Filtered, label_confidences
from distill.labels.generate import label
from distill.matchers.box_relative import BoxRelative
from distill.matchers.memoized import MemoizedMatcher
from distill.system.environment import choose_device
from distill.training.callbacks.build import callbacks, checkpoints
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.match_pictures import MatchPictures
from distill.training.callbacks.same_buffers import SameBuffers
from distill.training.callbacks.seeding import BatchSeed
from distill.training.module import Distillation


def run(cfg: DictConfig) -> Comparison | None:
    """Trains, saves, exports and compares; returns the comparison, if test pairs were asked for."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    if is_many(cfg):
        check_command_line()
    device, taught = choose_device(cfg.device), is_taught(cfg)
    student = started(instantiate(cfg.student), cfg.start)
    check_size(student, cfg.data.size)
    train, val = (pairs_of(cfg.data, split, cfg[split]) for split in ("train", "val"))
    if cfg.points is not None:
        train = instantiate(cfg.points, pairs=train)
    test = pairs_of(cfg.data, "test", cfg.test) if cfg.test.n_pairs else None
    baseline = instantiate(cfg.baseline)
    teacher = Cached(cfg.labels.dir, instantiate(cfg.teacher), fallbacks=list(cfg.labels.fallbacks))
    module, criteria = _distillation(cfg, student, teacher), instantiate(cfg.filter.criteria) or {}
    first = is_first_process()
    folder = RunFolder.create(cfg, resume=cfg.run.resume) if first else RunFolder(cfg.run.dir)
    for pairs in filter(None, (train if taught else None, val, test)):
        label(teacher, pairs, device, progress=first)
    if taught:
        _filter(module, criteria, train, cfg.batch_size, device)
    _train(cfg, folder, module, PairDataModule(train, val, cfg.batch_size, cfg.num_workers, cfg.seed))  # type: ignore[arg-type]
    if not first:
        return None
    student = _keep(module.student, cfg, folder)
    if test is None:
        return None
    matchers = {"teacher": teacher, "student": student, "nearest_neighbour": baseline, "box_relative": BoxRelative()}
    comparison = compare(matchers, test, metrics=instantiate(cfg.metrics))
    comparison.notes.append("The teacher's answers were read from its labels; python -m distill compare times it.")
    write_reports(folder, comparison, test)
    print_table(comparison)
    return comparison


def _keep(student: nn.Module, cfg: DictConfig, folder: RunFolder) -> nn.Module:
    """Writes the trained student, as weights and as ONNX, and returns it as it is kept."""
    student, config = finished(student, cfg)
    save_student(student, config, folder / "student.safetensors")
    print(f"student: {folder / 'student.safetensors'}")
    if cfg.onnx:
        deviation = export_student(student, folder / "student.onnx", cfg.data.size, config)
        print(f"ONNX:    {folder / 'student.onnx'} (differs from torch by at most {deviation.points_px:.2g} px)")
    return student


def is_taught(cfg: DictConfig) -> bool:
    """Says whether the student learns from the teacher's labels, or from its own only.

    Raises:
        ConfigError: for a filter of labels that nobody learns from.
    """
    taught = cfg.self_distillation is None or cfg.self_distillation.start_epoch > 0
    if not taught and (cfg.filter.criteria or cfg.filter.curriculum):
        raise ConfigError(
            "Expected filter=none with self_distillation.start_epoch=0, where the teacher's labels are not learned from, but "
            f"got {sorted(cfg.filter.criteria or {}) or 'a curriculum'}; start later, or leave the filter out."
        )
    return taught


def started(student: nn.Module, path: str | None) -> nn.Module:
    """Returns the student with the weights of the student's file ``path``, or as it is for None.

    Raises:
        WeightsError: when the file is missing or holds another network.
    """
    return student if path is None else load_into(student, read_student_file(path)[1], path).train()


def check_size(student: nn.Module, size: int) -> None:
    """Raises a :class:`ConfigError` when the student says that it cannot take images of ``size`` px a side."""
    check = getattr(student, "check_size", None)
    if callable(check):
        check(size)


def finished(student: nn.Module, cfg: DictConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the student as it is kept, its adapters merged, on the CPU, with the configuration that builds it."""
    student = student.cpu().eval()
    merge = getattr(student, "merge_adapters", None)
    if callable(merge):
        merge()
    config: dict[str, Any] = OmegaConf.to_container(cfg.student, resolve=True)  # type: ignore[assignment]
    return student, {**config, **({"lora": None} if "lora" in config else {}), "size": cfg.data.size}


def _distillation(cfg: DictConfig, student: nn.Module, teacher: Cached) -> Distillation:
    if cfg.compile:
        for child in student.children():
            child.compile()
    return Distillation(
        student,
        teacher,
        losses=instantiate(cfg.loss.terms),
        weights=OmegaConf.to_container(cfg.loss.weights),  # type: ignore[arg-type]
        augment=instantiate(cfg.augment),
        lr=cfg.lr,
        weight_decay=cfg.weight_decay,
        backbone_lr=cfg.backbone_lr,
        warmup=cfg.warmup,
        curriculum=instantiate(cfg.filter.curriculum),
    )


def _filter(
    module: Distillation, criteria: Mapping[str, Criterion], train: Benchmark, batch_size: int, device: str
) -> None:
    """Weighs the training labels, if there are criteria or a curriculum."""
    if not criteria and module.curriculum is None:
        return
    labeller = MemoizedMatcher(Filtered(module.teacher, criteria))
    confidence = label_confidences(labeller, train, batch_size, device)
    module.learn_from(labeller)
    if module.curriculum is not None:
        module.curriculum.calibrate(confidence)
    kept = (confidence > 0).float().mean()
    print(f"labels:  {len(confidence)}, {kept:.0%} kept, mean confidence {confidence.mean():.2f}")


def _train(cfg: DictConfig, folder: RunFolder, module: Distillation, data: PairDataModule) -> None:
    """Trains, and leaves the best student in ``module``, or the last one where nothing is monitored.

    Several processes are one again afterwards: what follows is the first one's business.
    """
    checkpoint = checkpoints(folder.path, cfg.monitor)
    loggers = [JsonLines(folder.path), *filter(None, [instantiate(cfg.logger.also)])]
    beside = callbacks(
        checkpoint,
        cfg.ema,
        cfg.patience,
        cfg.find_lr,
        instantiate(cfg.self_distillation),
        MatchPictures(folder.path, cfg.pictures) if cfg.pictures else None,
        instantiate(cfg.callbacks),
    )
    beside += [BatchSeed(cfg.seed), SameBuffers()]
    trainer: Trainer = instantiate(cfg.trainer, logger=loggers, callbacks=beside, default_root_dir=str(folder.path))
    last = folder.path / "checkpoints" / "last.ckpt"
    resumed = str(last) if cfg.run.resume and last.is_file() else None
    trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if distributed.is_initialized():
        trainer.strategy.barrier()
        distributed.destroy_process_group()
    best = Path(checkpoint.best_model_path)
    if not best.is_file():
        raise DataError("Expected a validation during training but there was none; raise trainer.max_epochs.")
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
