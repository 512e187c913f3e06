"""What a fit consists of, built from its configuration before anything is computed or written."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchmetrics import Metric

from distill.cli.config import built_by_name, instantiate
from distill.cli.datasets import fit_pairs, has_truth, truth_pairs, unlabelled_pairs
from distill.cli.further_metrics import metrics_of
from distill.core.errors import ConfigError, DataError, nearest
from distill.core.protocols import Benchmark, Matcher
from distill.data.datamodule import PairDataModule
from distill.data.joined_pairs import JoinedPairs
from distill.data.pairs import collate_pairs
from distill.export.student_file import load_into, read_student_file
from distill.labels.cached import Cached
from distill.labels.filters import Criterion
from distill.labels.generate import query_of
from distill.labels.labelled_pairs import LabelledCollate
from distill.labels.truth import FewShotTruth
from distill.system.environment import available_cores, choose_device, fast_precision
from distill.training.callbacks.build import callbacks, checkpoints
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.match_pictures import MatchPictures
from distill.training.callbacks.same_buffers import SameBuffers
from distill.training.callbacks.seeding import BatchSeed
from distill.training.callbacks.self_distillation import SelfDistillation
from distill.training.checks import check_fit
from distill.training.module import Distillation
from distill.training.optimiser import PEAK_RATES, build_optimizer
from distill.training.train import resumed_from
from distill.training.whole_checkpoints import write_whole_checkpoints

MOST_WORKERS = 8
"""Loading processes of one training process, unless more are asked for."""


@dataclass(frozen=True)
class FitParts:
    """Everything that a fit works with.

    Attributes:
        device: of the teacher, the filters and the comparison.
        train: training pairs.
        labelled: those of them that the teacher labels: without the annotated ones of ``truth``.
        val: validation pairs.
        test: annotated pairs of the final comparison; None for none.
        teacher: behind its label store.
        baseline: the untouched backbone's nearest neighbours; None leaves them out of the comparison.
        criteria: of the filter, by name.
        module: student and losses.
        data: loads the pairs.
        trainer: with its callbacks.
        checkpoint: the one that keeps the weights.
        metrics: further ones of the comparison, by name.
    """

    device: str
    train: Benchmark
    labelled: Benchmark
    val: Benchmark
    test: Benchmark | None
    teacher: Cached
    baseline: Matcher | None
    criteria: Mapping[str, Criterion]
    module: Distillation
    data: PairDataModule
    trainer: Trainer
    checkpoint: ModelCheckpoint
    metrics: Mapping[str, Metric]

    @property
    def student(self) -> nn.Module:
        """The student, as it is at the moment."""
        return self.module.student


def build(cfg: DictConfig) -> FitParts:
    """Builds all parts; the order decides which random numbers each one gets.

    Raises:
        ConfigError: for settings that cannot work, alone, together, or on this machine.
        DataError: for data that cannot be read or is not enough.
        WeightsError: for weights that are missing or do not suit.
    """
    device = choose_device(cfg.device)
    further = built_by_name(cfg, "callbacks", Callback)
    check_monitors(cfg, further)
    check_first_labels(cfg)
    if cfg.trainer.get("max_epochs") == 0:
        raise ConfigError("Expected at least one epoch but got trainer.max_epochs=0; the default is 14.")
    student = started(instantiate(cfg.student), cfg.init_from)
    check_size(student, cfg.data.size)
    train, val, test = fit_pairs(cfg)
    labelled, unlabelled = (with_points(cfg, pairs) for pairs in (train, unlabelled_pairs(cfg, train)))
    train, truth = with_truth(cfg, labelled, (val, test))
    if test is not None and not has_truth(test):
        raise DataError(
            f"Expected annotated points that test pairs of {test.name} have in common but found none; test.n_pairs=0 "
            "leaves the final comparison out."
        )
    baseline = instantiate(cfg.baseline)
    fallbacks = list(cfg.labels.fallbacks)
    teacher = Cached(cfg.labels.dir, instantiate(cfg.teacher), fallbacks=fallbacks, images=cfg.data)
    module = _module(cfg, student, teacher, truth)
    criteria = criteria_of(cfg)
    checkpoint, trainer = _trainer(cfg, further)
    metrics = metrics_of(cfg)
    rates = (cfg.lr, cfg.backbone_lr, cfg.weight_decay, cfg.warmup)
    build_optimizer(student, cfg.optimizer, 1, *rates)  # raises now what it would after labelling
    store = (teacher.store.folder, teacher.fingerprint(), fallbacks)
    collate = (LabelledCollate(*store, truth) if learns_from_teacher(cfg) else collate_pairs, LabelledCollate(*store))
    workers = cfg.num_workers if cfg.num_workers is not None else loading_processes(trainer.strategy.root_device.type)
    own = next((c for c in trainer.callbacks if isinstance(c, SelfDistillation)), None)
    later = None
    if unlabelled is not None and own is not None and trainer.limit_val_batches != 0:  # else labels stay the teacher's
        later = (unlabelled, own.first_epoch(trainer))
    data = PairDataModule(train, val, cfg.batch_size, workers, cfg.seed, *collate, later)  # type: ignore[arg-type]
    if own is not None:
        own.check(student, cfg.data.size)
    check_fit(trainer, data, resumed_from(checkpoint, cfg.run.resume), cfg.optimizer)
    pairs = (train, labelled, val, test)
    return FitParts(device, *pairs, teacher, baseline, criteria, module, data, trainer, checkpoint, metrics)


def with_points(cfg: DictConfig, pairs: Benchmark | None) -> Any:
    """Returns pairs with the points that ``points`` places, or as they are where it places none."""
    return pairs if pairs is None or cfg.points is None else instantiate(cfg.points, pairs=pairs)


def with_truth(
    cfg: DictConfig, labelled: Benchmark, others: Sequence[Benchmark | None]
) -> tuple[Benchmark, FewShotTruth | None]:
    """Returns the training pairs, and the truth where ``truth`` names annotated photographs, whose pairs are added.

    Args:
        cfg: of the fit.
        labelled: pairs that the teacher labels.
        others: pairs of validation and test, whose photographs the truth may not have.
    """
    annotated = truth_pairs(cfg, labelled, others)
    if annotated is None:
        return labelled, None
    queries = (query_of(annotated, number) for number in range(len(annotated)))
    truth = FewShotTruth(((query.src, query.trg) for query in queries), cfg.truth.weight)
    return JoinedPairs([labelled, *[annotated] * cfg.truth.repeat]), truth


def loading_processes(device: str) -> int:
    """Returns how many processes load the pairs of one that trains on a ``device`` of that type.

    None for a CPU, all of whose cores the training takes. Else one for each core but one, as far
    as they suffice for all training processes of the machine, and at most ``MOST_WORKERS``.
    """
    if device == "cpu":
        return 0
    return max(0, min(MOST_WORKERS, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1) - 1))


def learns_from_teacher(cfg: DictConfig) -> bool:
    """Returns whether the teacher's labels are trained on; false where self-distillation begins with the first epoch.

    Raises:
        ConfigError: for a filter of the teacher's labels where they are not trained on.
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

    A file's adapters are merged; where the student has adapters, they are new ones on top of the file's weights.

    Raises:
        WeightsError: when the file is missing or holds another network.
    """
    if path is None:
        return student
    tensors, unmerged = read_student_file(path)[1], getattr(student, "unmerged", None)
    return load_into(student, unmerged(tensors) if callable(unmerged) else tensors, path).train()


def criteria_of(cfg: DictConfig) -> dict[str, Criterion]:
    """Returns the criteria that ``filter`` describes, by name; null leaves one out.

    Raises:
        ConfigError: for what is no criterion, and for one that asks the baseline where there is none.
    """
    built = instantiate(cfg.filter.criteria) or {}
    criteria = {name: criterion for name, criterion in built.items() if criterion is not None}
    for name, criterion in criteria.items():
        if not callable(criterion):
            raise ConfigError(
                f"Expected filter.criteria.{name} to describe a criterion by its _target_ but got {criterion!r}; correct it, or "
                "write null to leave it out."
            )
        if hasattr(criterion, "matcher") and criterion.matcher is None:
            raise ConfigError(
                f"Expected a matcher for filter.criteria.{name} but got none; leave out baseline=null, or choose another filter."
            )
    return criteria


def check_size(student: nn.Module, size: int) -> None:
    """Raises a :class:`ConfigError` when the student says that it cannot take images of ``size`` px a side."""
    check = getattr(student, "check_size", None)
    if callable(check):
        check(size)


def check_monitors(cfg: DictConfig, further: Mapping[str, Callback]) -> None:
    """Raises when ``monitor``, or that of a callback, names what is not logged.

    Args:
        cfg: of the fit.
        further: callbacks that the user adds, by name. Where some are not Lightning's, they may log what we do not know.

    Raises:
        ConfigError: naming the figures that are logged.
    """
    if not all(type(callback).__module__.startswith("lightning.") for callback in further.values()):
        return
    losses = ["loss", *(name for name, term in cfg.loss.terms.items() if term is not None)]
    scores = [f"val/{name}@{alpha}" for name in ("pck", "pck_teacher") for alpha in ("0.05", "0.10")]
    validated = [*scores, *(f"val/{name}" for name in losses)]
    logged = [*validated, *(f"train/{name}" for name in losses), "epoch", "step"]
    _check_figure("monitor", cfg.monitor, validated)
    for name, callback in further.items():
        if getattr(callback, "strict", True):
            _check_figure(f"callbacks.{name}.monitor", getattr(callback, "monitor", None), logged)


def _check_figure(key: str, figure: object, known: Sequence[str]) -> None:
    if isinstance(figure, str) and figure not in known:
        raise ConfigError(f"Expected {key} to name a figure but got {figure!r}; {nearest(figure, known)}.")


def check_first_labels(cfg: DictConfig) -> None:
    """Raises a :class:`ConfigError` when a student of random weights would label the first pairs that it is trained on."""
    if is_new(cfg) and cfg.self_distillation is not None and cfg.self_distillation.get("start_epoch") == 0:
        raise ConfigError(
            "Expected a trained student in init_from for self_distillation.start_epoch=0, as its first labels are its own, but got one of "
            "random weights; set init_from=runs/fit/student.safetensors, or a later self_distillation.start_epoch."
        )


def is_new(cfg: DictConfig) -> bool:
    """Returns whether a student of this project starts from random weights."""
    return cfg.init_from is None and cfg.student.get("weights", "unknown") is None


def settle(cfg: DictConfig) -> None:
    """Replaces what ``cfg`` leaves to this machine and this student, in place: precision, optimiser and learning rate.

    The optimiser is Muon for a student of this project that starts from random weights; AdamW for all others. Weights of timm's models
    come from AdamW or SGD, and Muon was not tried on them.
    """
    accelerator = cfg.trainer.get("accelerator", "auto")
    if cfg.trainer.get("precision") is None:
        OmegaConf.update(cfg, "trainer.precision", fast_precision(accelerator), force_add=True)
    if cfg.optimizer is None:
        cfg.optimizer = "muon" if is_new(cfg) else "adamw"
    if cfg.lr is None:
        cfg.lr = PEAK_RATES["muon" if cfg.optimizer == "muon" else "adamw"]


def _module(cfg: DictConfig, student: nn.Module, teacher: Cached, truth: FewShotTruth | None) -> Distillation:
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
        truth=truth,
        optimizer=cfg.optimizer,
    )


def _trainer(cfg: DictConfig, further: Mapping[str, Callback]) -> tuple[ModelCheckpoint, Trainer]:
    folder = Path(cfg.run.dir)
    checkpoint = checkpoints(folder, cfg.monitor, cfg.loss.terms)
    loggers = [JsonLines(folder), *filter(None, [instantiate(cfg.logger.also)])]
    beside = callbacks(
        checkpoint,
        cfg.ema,
        cfg.patience,
        cfg.find_lr,
        instantiate(cfg.self_distillation),
        MatchPictures(folder, cfg.pictures) if cfg.pictures else None,
        further,
        then="" if cfg.test.n_pairs == 0 else " + test",
    )
    beside += [BatchSeed(cfg.seed), SameBuffers()]
    trainer = instantiate(cfg.trainer, logger=loggers, callbacks=beside, default_root_dir=str(folder))
    return checkpoint, write_whole_checkpoints(trainer)
