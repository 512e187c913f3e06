import copy
import json
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from distill.core.errors import ConfigError, DataError
from distill.core.types import Matches
from distill.data.datamodule import PairDataModule
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import collate_pairs
from distill.evaluation.pictures import CAPTION_HEIGHT
from distill.labels.cached import Cached
from distill.labels.curriculum import Curriculum
from distill.labels.truth import FewShotTruth
from distill.losses import Contrastive, CoordinateHuber, Equivariance, HeatmapKL, RelaxedCycle
from distill.matchers.oracle import Oracle
from distill.training.callbacks.build import callbacks, checkpoints
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.match_pictures import MatchPictures
from distill.training.callbacks.seeding import BatchSeed
from distill.training.callbacks.self_distillation import SelfDistillation
from distill.training.checks import check_fit
from distill.training.module import Distillation, UnregisteredReference
from distill.training.optimiser import adamw, groups
from distill.transforms.augment import Augment
from distill.transforms.warp import RandomWarp
from student import FeatureTeacher, StudentMatcher

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def distillation(lr: float = 3e-3, **weights) -> Distillation:
    seed_everything(0, verbose=False)
    student = StudentMatcher("test_resnet", strides=[8, 16], width=32)
    losses = {"heatmap": HeatmapKL(1.0), "points": CoordinateHuber()}
    return Distillation(student, Oracle(), losses, weights or {"heatmap": 1.0, "points": 1.0}, None, lr, 0.0)


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


def test_a_student_learns_a_handful_of_pairs_by_heart(tmp_path):
    trainer = fit(distillation(), tmp_path, 80)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert metrics["val/pck@0.10"] == metrics["val/pck_teacher@0.10"] > 80
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0] / 3


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_truth_goes_before_labels_also_of_a_student_that_labels_itself():
    module, pairs, learned = distillation(), ShapesPairs("train", 2, 0, 64), []
    batch, known = collate_pairs([pairs[0], pairs[1]]), [(pairs[0].src_original[0].hash, pairs[0].trg_original[0].hash)]

    def wrong(src: torch.Tensor, trg: torch.Tensor, kps: torch.Tensor) -> Matches:
        return Matches(torch.full_like(kps, 4.0), torch.full(kps.shape[:2], 0.5), torch.ones(*kps.shape[:2], 8, 8))

    def remember(example) -> torch.Tensor:
        learned.append(example.label)
        return example.prediction.trg_kps.sum()

    module.truth = FewShotTruth(known)
    module.losses, module.weights = {"heatmap": remember}, {"heatmap": 1.0}
    module.learn_from(wrong)
    module.training_step(batch, 0)
    n = int(batch.kps_mask[0].sum())
    torch.testing.assert_close(learned[0].trg_kps[0, :n], batch.trg_kps[0, :n])
    assert (learned[0].confidence[0, :n] == 1).all() and (learned[0].confidence[1] == 0.5).all()
    assert (learned[0].trg_kps[1] == 4).all()


def test_the_teacher_is_in_no_checkpoint(tmp_path):
    module = distillation()
    module._teacher = UnregisteredReference(torch.nn.Linear(3, 3))
    module.learn_from(torch.nn.Linear(3, 3))
    assert copy.deepcopy(module).teacher is module.teacher
    assert not any("teacher" in name for name in module.state_dict())
    assert all(name.startswith("student.") for name in module.state_dict())


def test_a_loss_without_a_weight_is_an_error():
    with pytest.raises(ConfigError, match="weight for each loss"):
        distillation(heatmap=1.0)


class NoForward(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("student", "losses", "message"),
    [
        (NoForward(), {"a": CoordinateHuber()}, "but NoForward has no forward; add it"),
        (Oracle(), {"a": CoordinateHuber()}, "but Oracle is no module"),
        (
            StudentMatcher("test_resnet", strides=[8], width=8),
            {"a": object()},
            "loss.terms.a .* object has no __call__",
        ),
    ],
)
def test_parts_that_cannot_be_called_are_refused(student, losses, message):
    with pytest.raises(ConfigError, match=message):
        Distillation(student, Oracle(), losses, {"a": 1.0}, None, 1e-3, 0.0)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda example: example.prediction.confidence.mean(1), r"shape \(2,\)"),
        (lambda example: 0.5, "float"),
        (lambda example: None, "NoneType"),
    ],
)
def test_a_loss_that_is_no_scalar_tensor_is_refused(loss, got):
    module, pairs = distillation(), ShapesPairs("train", 2, 0, 64)
    module.losses["points"] = loss
    with pytest.raises(DataError, match=f"loss.terms.points to return a scalar tensor but got {got}"):
        module.training_step(collate_pairs([pairs[0], pairs[1]]), 0)


def test_a_student_whose_answer_has_another_shape_is_refused():
    class Flat(torch.nn.Module):
        def forward(self, src_img, trg_img, src_kps):
            return Matches(src_kps.flatten(1), torch.ones(src_kps.shape[:2]), torch.ones(*src_kps.shape[:2], 4, 4))

    module = Distillation(Flat(), Oracle(), {"points": CoordinateHuber()}, {"points": 1.0}, None, 1e-3, 0.0)
    with pytest.raises(DataError, match=r"trg_kps \(1, \d+, 2\) of Flat"):
        module.training_step(ShapesPairs("train", 2, 0, 64)[0], 0)


def test_the_order_of_training_pairs_depends_on_the_seed_alone():
    pairs = ShapesPairs("train", 16, 0, 32)
    orders = []
    for seed in (0, 0, 1):
        loader = PairDataModule(pairs, pairs, 4, seed=seed).train_dataloader()
        orders.append([name for batch in loader for name in batch.src_hash])
    assert orders[0] == orders[1] != orders[2]


def test_a_batch_size_of_nothing_is_refused():
    pairs = ShapesPairs("train", 8, 0, 32)
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        PairDataModule(pairs, pairs, 0)


def test_a_loss_that_is_no_number_names_batch_and_pair_and_leaves_the_weights(tmp_path):
    module = distillation()

    class Broken:
        """NaN for one pair, and only there."""

        def __call__(self, example):
            bad = [name == "train-5" for name in example.pairs.src_id]
            value = example.prediction.trg_kps.mean((1, 2))
            return torch.where(torch.tensor(bad), torch.nan, value).mean()

    pairs = [ShapesPairs("train", 8, 0, 64)[n]._replace(src_id=[f"train-{n}"]) for n in range(8)]
    module.losses["heatmap"] = Broken()
    before = copy.deepcopy(module.state_dict())
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
    with pytest.raises(DataError, match="heatmap is NaN or infinite in batch 0, at the pair train-5"):
        trainer.fit(module, PairDataModule(pairs, pairs, batch_size=8))  # type: ignore[arg-type]
    weights = [name for name, _ in module.named_parameters()]
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in weights)


def test_a_gradient_that_is_no_number_of_a_finite_loss_names_parameter_and_step_and_leaves_the_weights(tmp_path):
    module = distillation()
    module.losses["heatmap"] = lambda example: (0 * example.prediction.trg_kps).sum().sqrt()  # 0, with gradient 0 / 0
    before = copy.deepcopy(module.state_dict())
    pairs = ShapesPairs("train", 8, 0, 64)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
    with pytest.raises(DataError, match=r"finite gradients but that of \S+ and \d+ more is NaN or infinite in step 0"):
        trainer.fit(module, PairDataModule(pairs, pairs, batch_size=8))  # type: ignore[arg-type]
    assert all(torch.equal(value, before[f"student.{name}"]) for name, value in module.student.named_parameters())


def test_a_loss_on_descriptors_needs_a_student_that_has_them():
    class Plain(torch.nn.Module):
        def forward(self, src_img, trg_img, src_kps):
            return Matches(src_kps, src_kps[..., 0], src_kps)

    with pytest.raises(ConfigError, match="for the losses cycle but Plain has none"):
        Distillation(Plain(), Oracle(), {"cycle": RelaxedCycle()}, {"cycle": 1.0}, None, 1e-3, 0.0)


def test_a_curriculum_lets_in_the_surest_labels_first():
    curriculum = Curriculum(start=0.25, end=1.0, over=0.5)
    label = Matches(torch.zeros(1, 8, 2), torch.arange(1.0, 9.0)[None] / 8, torch.zeros(1, 8, 1, 1))
    assert (curriculum(label, 0.0).confidence > 0).all()  # nobody has told it of the labels yet
    curriculum.calibrate(label.confidence.flatten())
    counts = [int((curriculum(label, progress).confidence > 0).sum()) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert counts == [2, 5, 8, 8]
    assert curriculum(label, 0.0).confidence[0, -2:].tolist() == [0.875, 1.0]
    with pytest.raises(ConfigError, match="curriculum in"):
        Curriculum(start=0)


def test_the_backbone_learns_at_its_own_rate_and_what_is_frozen_not_at_all():
    student = StudentMatcher("test_resnet", [8, 16], 8)
    head, backbone = groups(student, 1e-2, 0.1)
    assert (head["lr"], backbone["lr"]) == (1e-2, pytest.approx(1e-3))
    assert {id(p) for p in backbone["params"]} == {id(p) for p in student.backbone.parameters()}
    frozen = StudentMatcher("test_resnet", [8, 16], 8, tuning="frozen")
    assert len(groups(frozen, 1e-2, 0.1)) == 1
    with pytest.raises(ConfigError, match="backbone_lr to be positive"):
        groups(student, 1e-2, 0)
    with pytest.raises(ConfigError, match="all its parameters are frozen"):
        groups(student.requires_grad_(False), 1e-2, 1)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.1), (2, 0.5), (100, 0.01), (1, 0.5), (3, 1 / 3)])
def test_a_warm_up_of_one_step_begins_at_the_peak_rate(steps, warmup):
    made = adamw(torch.nn.Linear(1, 1), steps, 0.5, 1.0, 0.0, warmup)
    rates = []
    for _ in range(max(2, steps)):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step() if len(rates) < max(2, steps) else None
    assert rates[0] == pytest.approx(0.5) and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.5 / 25 / 1e4)


@pytest.mark.parametrize(("figure", "mode"), [("val/loss", "min"), ("val/points", "min"), ("val/pck@0.10", "max")])
def test_the_best_weights_have_the_lowest_loss_or_the_highest_pck(tmp_path, figure, mode):
    checkpoint = checkpoints(tmp_path, figure, losses=["points"])
    stopping = next(c for c in callbacks(checkpoint, patience=2) if isinstance(c, EarlyStopping))
    assert checkpoint.mode == stopping.mode == mode


def test_the_average_of_the_weights_is_what_is_kept(tmp_path):
    module = distillation(lr=1e-2)
    checkpoint = checkpoints(tmp_path, None)
    fit(module, tmp_path, 4, callbacks=callbacks(checkpoint, ema=0.9)[:-1])
    state = torch.load(tmp_path / "checkpoints" / "final.ckpt", weights_only=True)
    name = "student.log_temperature"
    assert not torch.equal(state["state_dict"][name], state["current_model_state"][name])
    assert torch.equal(module.state_dict()[name], state["state_dict"][name])


def test_the_student_becomes_its_own_teacher_with_the_averaged_weights(tmp_path):
    module = distillation(lr=1e-2)
    seen = []

    def teacher(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return Oracle()

    own = SelfDistillation(teacher, start_epoch=2)
    checkpoint = checkpoints(tmp_path, None)
    fit(module, tmp_path, 2, callbacks=callbacks(checkpoint, ema=0.9, self_distillation=own)[:-1])
    state = torch.load(tmp_path / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]
    assert own.rounds == 1 and module.labeller is not module.teacher
    assert torch.equal(seen[0]["log_temperature"], state["student.log_temperature"])
    with pytest.raises(ConfigError, match="start_epoch"):
        SelfDistillation(teacher, -1)


def test_a_student_that_was_trained_before_teaches_itself_from_the_first_step(tmp_path):
    module, taught = distillation(lr=1e-2), []

    def teacher(model):
        taught.append({name: value.clone() for name, value in model.state_dict().items()})
        return Oracle()

    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    fit(module, tmp_path, 1, callbacks=[SelfDistillation(teacher, start_epoch=0)])
    assert all(torch.equal(taught[0][name], value) for name, value in before.items())
    assert not torch.equal(taught[-1]["log_temperature"], before["log_temperature"]) and len(taught) == 2


def test_a_student_that_describes_nothing_cannot_become_its_own_teacher(tmp_path):
    class Blind(torch.nn.Linear):
        def forward(self, src_img, trg_img, src_kps):
            return Matches(src_kps, src_kps[..., 0] * 0, src_kps.new_zeros(*src_kps.shape[:2], 4, 4))

    module = Distillation(Blind(1, 1), Oracle(), {"points": CoordinateHuber()}, {"points": 1.0}, None, 1e-3, 0.0)
    own = SelfDistillation(lambda model: Oracle(), start_epoch=1)
    with pytest.raises(ConfigError, match="Blind has none; set self_distillation=null"):
        fit(module, tmp_path, 1, callbacks=[own])


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
    module, checkpoint = distillation(lr=1e-2), checkpoints(folder, None)
    teaching = options.pop("self_distillation", None)
    extra = [BatchSeed(0), *([StopAt(*stop)] if stop else [])]
    chosen = [*callbacks(checkpoint, ema=0.9, self_distillation=teaching)[:-1], *extra]
    pairs = ShapesPairs("train", 8, 0, 64)
    options = {"check_val_every_n_epoch": every, "logger": False, "callbacks": chosen, **QUIET, **options}
    trainer = Trainer(max_epochs=max_epochs, accelerator="cpu", **options)
    data = PairDataModule(pairs, pairs, batch_size=3)  # type: ignore[arg-type]
    last = folder / "checkpoints" / "last.ckpt"
    check_fit(trainer, data, last if resume else None)
    trainer.fit(module, data, ckpt_path=last if resume else None, weights_only=True)
    return module, checkpoint


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (3, 9)])
def test_the_last_weights_are_kept_whenever_the_last_validation_was(tmp_path, epochs, steps):
    module, checkpoint = trained(tmp_path, epochs)
    state = torch.load(checkpoint.best_model_path, weights_only=True)
    assert state["global_step"] == steps
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in module.state_dict().items())


def test_a_finished_training_is_extended_with_a_schedule_of_its_new_length(tmp_path):
    trained(tmp_path / "extended", 2)
    states = [
        torch.load(trained(tmp_path / name, 4, resume=resume)[1].best_model_path, weights_only=True)
        for name, resume in (("extended", True), ("whole", False))
    ]
    extended, whole = ([group["lr"] for group in state["optimizer_states"][0]["param_groups"]] for state in states)
    assert extended == whole and [state["global_step"] for state in states] == [12, 12]


def test_a_resumed_training_with_fewer_epochs_than_it_has_is_refused(tmp_path):
    trained(tmp_path, 2)
    with pytest.raises(
        ConfigError, match="trainer.max_epochs of at least 2, the epochs that .*last.ckpt has, but got 1"
    ):
        trained(tmp_path, 1, resume=True)


def test_self_distillation_resumes_bit_for_bit(tmp_path):
    """The labels are those of the last validation's averaged weights, which differ from the present ones."""

    def teaching():
        return SelfDistillation(partial(FeatureTeacher, side=8), start_epoch=2)

    whole, _ = trained(tmp_path / "whole", 6, self_distillation=teaching())
    for stop in ((3, 1), (5, 2)):  # an epoch after a validation, and two epochs after another
        folder = tmp_path / str(stop[0])
        with pytest.raises(Stop):
            trained(folder, 6, stop=stop, self_distillation=teaching())
        resumed, _ = trained(folder, 6, resume=True, self_distillation=teaching())
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (stop, name)


def without_points(pairs):
    """A pair of which no point is visible in both images."""
    names = ("src_kps", "trg_kps", "kps_mask", "kps_id")
    return pairs._replace(**{name: getattr(pairs, name)[:, :0] for name in names})


def test_batches_without_common_points_weigh_nothing(tmp_path):
    pairs = [ShapesPairs("train", 8, 0, 64)[n] for n in range(8)]
    empty = [without_points(pair) for pair in pairs[:4]]
    losses = {"heatmap": HeatmapKL(1.0), "points": CoordinateHuber(), "contrastive": Contrastive()}
    losses |= {"cycle": RelaxedCycle(), "warp": Equivariance(RandomWarp(), points=2)}
    scores = []
    for val in (pairs, [*pairs[:4], *empty, *pairs[4:]]):
        seed_everything(0, verbose=False)
        student = StudentMatcher("test_resnet", strides=[8, 16], width=32)
        weights = dict.fromkeys(losses, 1.0) | {"warp": 0.0}
        teacher = Cached(tmp_path / str(len(val)), Oracle())
        module = Distillation(student, teacher, losses, weights, Augment(), 1e-3, 0.0)
        trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
        data = PairDataModule([*empty, *empty], val, batch_size=4)  # type: ignore[arg-type]
        trainer.fit(module, data)
        scores.append(trainer.validate(module, data, verbose=False)[0])
    assert scores[0].keys() == scores[1].keys() and "val/pck@0.10" in scores[0]
    for name in scores[0].keys() - {"val/warp"}:
        assert scores[0][name] == pytest.approx(scores[1][name], rel=1e-4), name


def test_a_validation_without_any_common_point_logs_no_loss(tmp_path):
    empty = [without_points(ShapesPairs("train", 4, 0, 64)[n]) for n in range(4)]
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
    (found,) = trainer.validate(distillation(), PairDataModule(empty, empty, batch_size=4), verbose=False)  # type: ignore[arg-type]
    assert set(found) == {f"val/{name}@{alpha}" for name in ("pck", "pck_teacher") for alpha in ("0.05", "0.10")}


def processes(devices: int, **options) -> Trainer:
    """A trainer for several processes, of which none is started."""
    strategy = "ddp" if devices > 1 else "auto"
    options = {"logger": False, "enable_checkpointing": False, **QUIET, **options}
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, **options)


def test_fewer_validation_batches_than_processes_are_refused():
    train, val = ShapesPairs("train", 64, 0, 32), ShapesPairs("val", 40, 0, 32)
    data = PairDataModule(train, val, batch_size=16)  # type: ignore[arg-type]
    assert check_fit(processes(3), data, None) is None
    with pytest.raises(
        ConfigError, match="batch for each of 4 processes but got 3 of 16 pairs.*val.n_pairs=64.*batch_size=10"
    ):
        check_fit(processes(4), data, None)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_round_the_points_are_refused(precision):
    pairs = ShapesPairs("train", 8, 0, 32)
    with pytest.raises(ConfigError, match=f"rounds no points but got {precision}"):
        check_fit(processes(1, precision=precision), PairDataModule(pairs, pairs, 4), None)  # type: ignore[arg-type]


def test_a_figure_that_no_validation_measures_is_refused(tmp_path):
    pairs, checkpoint = ShapesPairs("train", 8, 0, 32), checkpoints(tmp_path, "val/pck@0.10")
    options = {"max_epochs": 1, "check_val_every_n_epoch": 2, "callbacks": [checkpoint], "logger": False, **QUIET}
    trainer, data = Trainer(accelerator="cpu", **options), PairDataModule(pairs, pairs, 4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="validation in 1 epochs for monitor=val/pck@0.10 but .* every 2"):
        check_fit(trainer, data, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast_dev_run": True}, "trainer.fast_dev_run keeps none; .*trainer=smoke"),
        ({"limit_train_batches": 0}, "batches to train on but got trainer.limit_train_batches=0"),
        (
            {"limit_val_batches": 0},
            "a validation for monitor=val/pck@0.10 but trainer.limit_val_batches=0 leaves it out",
        ),
        ({"max_epochs": -1}, "an end of the training, .* trainer.max_epochs=-1"),
        ({"max_epochs": -1, "max_time": "00:00:01:00"}, "an end of the training, .* trainer.max_epochs=-1"),
    ],
)
def test_a_training_that_keeps_no_weights_is_refused(tmp_path, options, message):
    pairs, checkpoint = ShapesPairs("train", 8, 0, 32), checkpoints(tmp_path, "val/pck@0.10")
    trainer = Trainer(accelerator="cpu", callbacks=[checkpoint], logger=False, **{"max_epochs": 2} | options | QUIET)
    with pytest.raises(ConfigError, match=message):
        check_fit(trainer, PairDataModule(pairs, pairs, 4), None)  # type: ignore[arg-type]


def test_the_best_weights_are_found_again_where_the_folder_was_moved(tmp_path):
    before, after = (checkpoints(tmp_path / name, "val/pck@0.10") for name in ("before", "after"))
    best = str(tmp_path / "before" / "checkpoints" / "best.ckpt")
    before.best_model_path = before.kth_best_model_path = best
    before.best_model_score, before.best_k_models = torch.tensor(3.0), {best: torch.tensor(3.0)}
    after.load_state_dict(before.state_dict())
    moved = best.replace("before", "after")
    assert after.best_model_path == after.kth_best_model_path == moved
    assert after.best_model_score == 3 and after.best_k_models == {moved: 3} and after.last_model_path == ""
    lightnings = ModelCheckpoint(tmp_path, "best", monitor="val/pck@0.10", mode="max")
    assert after.state_key == lightnings.state_key, "runs of earlier versions are resumed"


@pytest.mark.parametrize(("epochs", "fits"), [(49, False), (50, True), (-1, True)])
def test_a_search_for_a_learning_rate_needs_a_hundred_steps(tmp_path, epochs, fits):
    pairs, beside = ShapesPairs("train", 8, 0, 32), callbacks(checkpoints(tmp_path, None), find_lr=True)[:-1]
    options = {"max_epochs": epochs, "max_steps": 200, "callbacks": beside, "logger": False, **QUIET}
    trainer, data = Trainer(accelerator="cpu", **options), PairDataModule(pairs, pairs, 4)  # type: ignore[arg-type]
    if fits:
        check_fit(trainer, data, None)
    else:
        with pytest.raises(ConfigError, match="at least 100 steps for find_lr but got 98; .* trainer.max_epochs=50"):
            check_fit(trainer, data, None)


def test_settings_of_what_runs_beside_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="ema, a decay"):
        callbacks(checkpoints(tmp_path, None), ema=1.0)
    with pytest.raises(ConfigError, match="a monitor whose progress counts"):
        callbacks(checkpoints(tmp_path, None), patience=3)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_mixed_precision_and_accumulation_train(tmp_path, options):
    trainer = fit(distillation(), tmp_path, 2, **options)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_matches_are_drawn_for_the_folder_and_for_tensorboard(tmp_path):
    shown = []

    class Board(JsonLines):
        @property
        def experiment(self):
            return self

        def add_image(self, name, image, step, dataformats):
            shown.append((name, image.shape, step, dataformats))

    module = distillation()
    pairs = ShapesPairs("train", 4, 0, 64)
    options = {**QUIET, "callbacks": [MatchPictures(tmp_path, 2)], "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=Board(tmp_path), log_every_n_steps=1, **options)
    trainer.fit(module, PairDataModule(pairs, pairs, batch_size=4))  # type: ignore[arg-type]
    assert len(list((tmp_path / "matches").glob("*.png"))) == 1
    ((name, shape, _, order),) = shown
    assert (name, order) == ("val/matches", "HWC") and shape == (2 * (256 + CAPTION_HEIGHT), 3 * 256, 3)


@pytest.mark.slow
def test_a_learning_rate_is_found_before_training(tmp_path):
    module = distillation(lr=1e-7)
    fit(module, tmp_path, 120, callbacks=callbacks(checkpoints(tmp_path, None), find_lr=True)[:-1])
    assert module.lr > 1e-6
