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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from distill.cli.fit_parts import FitParts, build, learns_from_teacher, settle
from distill.cli.processes import (
    expect_others,
    is_first_process,
    is_started_by_training,
    launch,
    on_own_device,
    start_others,
)
from distill.cli.reporting import announce, answers_to, report
from distill.cli.run_folder import RunFolder, check_free, check_unchanged
from distill.core.errors import ExportError
from distill.core.protocols import Benchmark, Matcher, PairMatcher, on_device
from distill.data.download import licence_of
from distill.evaluation.compare import Comparison, compare
from distill.evaluation.label_truth import LabelTruth
from distill.export.about import add_figures, backbone_licence
from distill.export.licences import inherited_licence, teacher_licence
from distill.export.onnx import export_student
from distill.export.student_file import add_about, save_student
from distill.labels.generate import label
from distill.matchers.box_relative import BoxRelative
from distill.training.train import filter_labels, train

OF_WEIGHTS = ("student.onnx", "metrics.json", "report.md", "report.html", "matches.png", "predictions/*.npz")
"""Patterns of a run's files that tell of its weights, besides the student's own. Those of its course, ``metrics.jsonl`` and
``matches/``, go on where it is resumed."""
REPLACED = ("student.safetensors", "metrics.jsonl", *OF_WEIGHTS)
"""What a new fit would replace, such as the weights of ``init_from``."""


def run(cfg: DictConfig) -> Comparison | None:
    """Builds, labels, trains and reports; returns the comparison, if one was asked for."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    expect_others(cfg)
    settle(cfg)
    if cfg.run.resume:
        check_unchanged(cfg)
    else:
        check_free(Path(cfg.run.dir), REPLACED)
    taught, first = learns_from_teacher(cfg), is_first_process()
    parts = build(on_own_device(cfg))
    with RunFolder.create(cfg, resume=cfg.run.resume) if first else RunFolder(cfg.run.dir) as folder:
        if first:
            announce("fit", f"a student on {parts.train.name}", devices(parts), folder.path)
            print(f"by:      optimizer={cfg.optimizer} lr={cfg.lr:g} trainer.precision={cfg.trainer.precision}")
        if parts.trainer.world_size > 1 and not is_started_by_training(cfg):
            start_others(parts.trainer)  # now rather than with the training, so that all share labels and filters
            launch(cfg)
        make_labels(cfg, parts, taught, first)
        train(parts.trainer, parts.module, parts.data, parts.checkpoint, cfg.run.resume)
        if not first:
            return None
        say_if_nothing_was_logged(parts.trainer, folder)
        student = keep(cfg, parts.student, folder, origin(cfg, parts))
        # A compiled student would be compiled once more here, which its time would count.
        with torch.compiler.set_stance("force_eager") if cfg.compile else nullcontext():
            return finish(cfg, parts, student, folder)


def devices(parts: FitParts) -> str:
    """Returns the device of teacher and comparison, and that of the training where it is another."""
    training = parts.trainer.strategy.root_device.type
    return parts.device if parts.device.startswith(training) else f"{parts.device}, training on {training}"


def make_labels(cfg: DictConfig, parts: FitParts, taught: bool, first: bool) -> None:
    """Makes the labels that are missing, and filters those that the student learns from; processes share the work."""
    for pairs in filter(None, (parts.labelled if taught else None, parts.val, parts.test)):
        label(parts.teacher, pairs, parts.device, progress=first, then=" + training")
    criteria, pairs = parts.criteria, parts.labelled
    kept = filter_labels(parts.module, criteria, pairs, cfg.batch_size, parts.device, first) if taught else None
    if kept is not None and first:
        print(f"labels:  {kept}")


def say_if_nothing_was_logged(trainer: Trainer, folder: RunFolder) -> None:
    """Prints why a run has no training curve, which happens with very few steps, and what gives it one."""
    if not (folder / "metrics.jsonl").is_file():
        print(
            f"note: no metrics.jsonl: there were fewer than trainer.log_every_n_steps={trainer.log_every_n_steps} steps and fewer than "
            f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} epochs; set both to 1, or trainer=smoke"
        )


def origin(cfg: DictConfig, parts: FitParts) -> dict[str, Any]:
    """Returns what a student's file says of its teacher and data; of paths only the last part, which is no secret."""
    data = {"name": parts.train.name, "split": parts.train.split, "n_pairs": len(parts.train)}
    weights = backbone_licence(parts.student, cfg.student)
    config: dict[str, Any] = OmegaConf.to_container(cfg.teacher, resolve=True)  # type: ignore[assignment]
    teacher = {"class": config["_target_"], "model": ", ".join(model_names(config))}
    licences = {"teacher": teacher_licence(config), "backbone": weights, "data": licence_of(parts.train.name)}
    if cfg.init_from is not None:  # the student goes on from weights that have a lineage of their own
        licences["init_from"] = f"{Path(cfg.init_from).name}: {inherited_licence(cfg.init_from)}"
    known = {"teacher": teacher, "data": data, "licences": licences}
    return {field: {key: value for key, value in told.items() if value} for field, told in known.items()}


def model_names(teacher: Mapping[str, Any]) -> list[str]:
    """Returns the names of the pipelines, backbones, students and hub entries that a teacher's configuration names, each once.

    Of paths they are the last part.
    """
    found: list[str] = []
    for key, value in teacher.items():
        if isinstance(value, Mapping):
            found += model_names(value)
        elif key in ("model", "backbone", "path", "entry") and isinstance(value, str):
            found.append(Path(value).name)
    return list(dict.fromkeys(found))


def keep(cfg: DictConfig, student: nn.Module, folder: RunFolder, about: Mapping[str, Any]) -> nn.Module:
    """Writes the trained student, as weights and as ONNX, and returns it as it is kept.

    What a resumed run has of earlier weights is removed, whether or not it is made again.
    """
    student, config = finished(student, cfg)
    old = [path for pattern in OF_WEIGHTS for path in sorted(folder.path.glob(pattern))]
    if old:
        names = ", ".join(str(path.relative_to(folder.path)) for path in old)
        print(f"removed: {names}, which belong to earlier weights")
    for path in old:
        path.unlink()
    save_student(student, config, folder / "student.safetensors", about)
    print(f"student: {folder / 'student.safetensors'}")
    if cfg.onnx:
        print("ONNX:    is written and compared with torch, which takes up to a minute", flush=True)
        try:
            deviation = export_student(student, folder / "student.onnx", cfg.data.size, config, about=about)
            print(f"ONNX:    {folder / 'student.onnx'} (differs from torch by at most {deviation.points_px:.2g} px)")
        except ExportError as error:  # the student and its figures are what the run was for
            print(f"ONNX:    none. {error}")
    return student


def finished(student: nn.Module, cfg: DictConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the student as it is kept, its adapters merged, on the CPU, with the configuration that builds it."""
    student = student.cpu().eval()
    merge = getattr(student, "merge_adapters", None)
    if callable(merge):
        merge()
    config: dict[str, Any] = OmegaConf.to_container(cfg.student, resolve=True)  # type: ignore[assignment]
    images = {"size": cfg.data.size, "resize": cfg.data.get("resize", "squash")}
    return student, {**config, **({"lora": None} if "lora" in config else {}), **images}


def finish(cfg: DictConfig, parts: FitParts, student: nn.Module, folder: RunFolder) -> Comparison | None:
    """Compares and reports: with the truth on the test pairs, or with the teacher's labels where nothing is annotated.

    Returns:
        The comparison; None where ``test.n_pairs=0`` leaves it out.
    """
    if cfg.test.n_pairs == 0:  # null: all pairs
        return None
    networks = {"student": student} | ({} if parts.baseline is None else {"nearest_neighbour": parts.baseline})
    moved = {name: on_device(network, parts.device) for name, network in networks.items()}
    others: dict[str, Matcher | PairMatcher] = {**moved, "box_relative": BoxRelative()}
    options: dict[str, Any] = {"device": parts.device, "metrics": parts.metrics, "keep": answers_to(folder)}
    if parts.test is not None:
        pairs: Benchmark = parts.test
        comparison = compare({"teacher": parts.teacher, **others}, pairs, **options)
        note = "The teacher's answers were read from its labels; python -m distill compare times it."
    else:
        pairs = LabelTruth(parts.val, parts.teacher)
        comparison = compare(others, pairs, "student", **options)
        note = "Nothing is annotated: PCK says how often an answer is near the teacher's label, on validation pairs."
    comparison.notes.append(note)
    report(folder, comparison, pairs)
    add_about(folder / "student.safetensors", {"figures": figures(comparison)})
    if (folder / "student.onnx").is_file():
        add_figures(folder / "student.onnx", figures(comparison))
    return comparison


def figures(comparison: Comparison) -> dict[str, Any]:
    """Returns the student's PCK in percent, with what it was measured on."""
    found = comparison.evaluations["student"].report
    convention = f"per image, {found['threshold']}, {found['data']} {found['split']}, {found['n_pairs']} pairs"
    return {f"pck@{alpha}": value for alpha, value in found["pck"]["image"].items()} | {"convention": convention}
