import copy
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm.optim
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from trainings import QUIET, Stop, StopAt, distillation, fit

from distill.core.errors import ConfigError, DataError, WeightsError
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
from distill.training.callbacks.find_lr import FindLearningRate, steepest
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.match_pictures import MatchPictures
from distill.training.callbacks.same_buffers import SameBuffers
from distill.training.callbacks.seeding import BatchSeed
from distill.training.callbacks.self_distillation import SelfDistillation
from distill.training.module import Distillation, UnregisteredReference
from distill.training.optimiser import build_optimizer, groups, matrices
from distill.transforms.augment import Augment
from distill.transforms.warp import RandomWarp
from student import FeatureTeacher, StudentMatcher


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


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_loss_that_is_cut_off_from_the_student_is_refused_at_the_first_step():
    module, batch = distillation(), collate_pairs([ShapesPairs("train", 1, 0, 64)[0]])
    kept, weight = dict(module.losses), dict(module.weights)

    def own(value) -> None:
        module.losses, module.weights = {**kept, "own": value}, {**weight, "own": 1.0}

    for cut in (
        lambda e: e.prediction.trg_kps.mean().detach(),
        lambda e: torch.tensor(e.prediction.confidence.sum().item()),
    ):
        own(cut)
        with pytest.raises(DataError, match="loss.terms.own to depend on the student's answer .* loss.weights.own=0"):
            module.training_step(batch, 0)
        module.weights["own"] = 0.0
        assert module.training_step(batch, 0).requires_grad, "it is only logged"
    own(lambda e: torch.zeros(()))
    assert module.training_step(batch, 0).requires_grad, "it has nothing to say about this batch"
    own(lambda e: e.prediction.trg_kps.mean())
    assert module.training_step(batch, 0).requires_grad


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
    curriculum.calibrate([0.0] * 20 + label.confidence.flatten().tolist())
    assert int((curriculum(label, 0.0).confidence > 0).sum()) == 2, "what a filter removed has no share"
    with pytest.raises(ConfigError, match="curriculum in"):
        Curriculum(start=0)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_curriculum_is_of_the_teachers_labels_alone(monkeypatch):
    """The student's own are less sure: the teacher's threshold would leave out nearly all of them."""
    module, pairs, learned = distillation(), ShapesPairs("train", 2, 0, 64), []
    batch = collate_pairs([pairs[0], pairs[1]])

    def unsure(src: torch.Tensor, trg: torch.Tensor, kps: torch.Tensor) -> Matches:
        return Matches(kps, torch.full(kps.shape[:2], 0.3), torch.ones(*kps.shape[:2], 8, 8))

    def remember(example) -> torch.Tensor:
        learned.append(example.label.confidence)
        return example.prediction.trg_kps.sum()

    module.curriculum = Curriculum(start=0.4)
    module.curriculum.calibrate(torch.linspace(0.5, 1, 100))
    module.losses, module.weights = {"heatmap": remember}, {"heatmap": 1.0}
    monkeypatch.setattr(module, "progress", lambda: 0.1)
    module._teacher = UnregisteredReference(unsure)
    for labeller in (unsure, lambda *query: unsure(*query)):
        module.learn_from(labeller)
        module.training_step(batch, 0)
    assert learned[0].max() == 0 and learned[1].min() == pytest.approx(0.3)


def test_unlabelled_pairs_wait_for_a_validation_that_is_counted_in_epochs():
    own = SelfDistillation(FeatureTeacher, 4)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **QUIET}
    assert own.first_epoch(Trainer(check_val_every_n_epoch=3, **quiet)) == 6
    with pytest.raises(ConfigError, match=r"number for trainer.check_val_every_n_epoch.*got null.*train.unlabelled=0"):
        own.first_epoch(Trainer(check_val_every_n_epoch=None, val_check_interval=10, **quiet))


def test_a_copy_of_another_student_is_named():
    own, module = SelfDistillation(FeatureTeacher, 0), distillation()
    for state in (
        {},
        {"weights": [1], "rounds": 1},
        {"weights": {"a": 1}, "rounds": 1},
        {"weights": None, "rounds": "x"},
    ):
        with pytest.raises(WeightsError, match="Expected a copy of the student in the checkpoint"):
            own.load_state_dict(state)
    own.load_state_dict({"weights": {"a": torch.zeros(1)}, "rounds": 1})
    with pytest.raises(
        WeightsError, match="Expected a copy of this student in the checkpoint but it is another's"
    ) as caught:
        own.on_train_start(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET), module)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.1), (2, 0.5), (100, 0.01), (1, 0.5), (3, 1 / 3)])
def test_a_warm_up_of_one_step_begins_at_the_peak_rate(name, steps, warmup):
    made = build_optimizer(torch.nn.Linear(1, 1), name, steps, 0.5, 1.0, 0.0, warmup)
    rates = []
    for _ in range(max(2, steps)):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step() if len(rates) < max(2, steps) else None
    assert rates[0] == pytest.approx(0.5) and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.5 / 25 / 1e4)


def test_muon_is_for_what_mixes_channels():
    """Not for the layer that reads colours, nor for what treats each channel alone, nor for vectors."""
    student = StudentMatcher("mobilenetv2_050", [8, 16], 8)
    chosen = {id(weight) for weight in matrices(student)}
    names = {name for name, parameter in student.named_parameters() if id(parameter) in chosen}
    assert len(chosen) == len(names) > 20 and not any("conv_stem" in n or "conv_dw" in n or "bn" in n for n in names)
    sizes = {p.dim() for name, p in student.named_parameters() if name not in names and "conv" not in name}
    assert sizes == {0, 1}
    vit = StudentMatcher("test_vit", [16], 8)
    weights = {name for name, p in vit.named_parameters() if id(p) in {id(weight) for weight in matrices(vit)}}
    assert any("qkv" in name for name in weights) and not any("pos_embed" in n or "patch_embed" in n for n in weights)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_muon_moves_matrices_as_torchs_and_the_rest_as_adamw(monkeypatch):
    """torch's own takes matrices only: here those of convolutions are flattened. It computes in bfloat16 on all processors."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    student = StudentMatcher("test_resnet", [8, 16], 8)
    made = build_optimizer(student, "muon", 10, 1e-2, 0.5, 0.05, 0.1)
    inner = {id(weight) for weight in matrices(student)}
    below = {id(parameter) for parameter in student.backbone.parameters()}
    pairs = [
        (p, torch.nn.Parameter((p.flatten(1) if id(p) in inner else p).detach().clone())) for p in student.parameters()
    ]
    rates = [group["lr"] for group in made["optimizer"].param_groups]  # of the first step, in the order of the groups
    head, backbone = max(rates), min(rates)
    assert backbone == pytest.approx(head / 2)
    kinds = {}
    for p, copied in pairs:
        kinds.setdefault((id(p) in inner, backbone if id(p) in below else head), []).append(copied)
    assert len(kinds) == len(rates) == 4
    others = [
        torch.optim.Muon(copies, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        if matrix
        else torch.optim.AdamW(copies, lr=lr / 4, weight_decay=0.05)
        for (matrix, lr), copies in kinds.items()
    ]
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for p, copied in pairs:
            p.grad = torch.randn(p.shape, generator=generator)
            copied.grad = p.grad.view_as(copied).clone()
        for each in (made["optimizer"], *others):
            each.step()
    for p, copied in pairs:
        torch.testing.assert_close(p, copied.view_as(p), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 4, 3, 3)])
@pytest.mark.parametrize(("fast", "tolerance"), [(False, 1e-5), (True, 3e-2)])
def test_muon_computes_in_single_precision_where_bfloat16_is_slow(monkeypatch, shape, fast, tolerance):
    """Against five iterations of the polynomial on the singular values of the gradient, in double precision."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast}, raising=False)
    layer = torch.nn.Conv2d(*shape[1::-1], 3) if len(shape) > 2 else torch.nn.Linear(*shape[::-1])
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made, before = build_optimizer(layer, "muon", 10, 1.0, 1.0, 0.0, 0.1), layer.weight.detach().clone()
    (rate,) = {group["lr"] for group in made["optimizer"].param_groups if layer.weight is group["params"][0]}
    library = timm.optim.muon.zeropower_via_newtonschulz
    layer.weight.grad, layer.bias.grad = gradient, torch.zeros_like(layer.bias)
    made["optimizer"].step()
    assert timm.optim.muon.zeropower_via_newtonschulz is library
    left, values, right = np.linalg.svd(gradient.flatten(1).double().numpy(), full_matrices=False)
    values /= np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    orthogonal = torch.from_numpy((left * values) @ right).float().view(shape)
    size = 0.2 * max(left.shape[0], right.shape[1]) ** 0.5  # steps of the size of AdamW's
    error = ((before - layer.weight.detach()) / rate / size - orthogonal).abs().max()
    assert error < tolerance and (error > 1e-4) == fast


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


def test_validation_has_the_first_processs_buffers_also_of_averaged_weights(monkeypatch):
    """Process 0 has 7 everywhere. The hooks are called as Lightning calls them, in the order of ``fit``."""
    module, trainer = distillation(), SimpleNamespace(world_size=2)
    average = next(c for c in callbacks(checkpoints(Path(), None), ema=0.9) if isinstance(c, EMAWeightAveraging))
    average.setup(trainer, module, "fit")
    processes = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, broadcast=lambda b, _: b.fill_(7)
    )
    monkeypatch.setattr("distill.training.callbacks.same_buffers.distributed", processes)
    for hook in ("on_validation_start", "on_validation_epoch_start"):
        for callback in (average, SameBuffers()):
            getattr(callback, hook)(trainer, module)
    averages = [name for name, _ in module.named_buffers() if "running" in name]
    assert averages and all((module.get_buffer(name) == 7).all() for name in averages)


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


def test_pairs_without_labels_are_for_self_distillation_alone(tmp_path):
    """The teacher is never asked about them, and each epoch has as many pairs as are labelled."""
    module, taught = distillation(lr=1e-2), []
    labelled, further = ShapesPairs("train", 8, 0, 64), ShapesPairs("train", 24, 1, 64)
    known = {labelled[n].src_hash[0] for n in range(8)}

    class Strict:
        def match_pairs(self, pairs):
            assert set(pairs.src_hash) <= known
            return Oracle().match_pairs(pairs)

    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            taught.append((pl_module.labeller is not pl_module.teacher, batch.src_hash))

    module._teacher.content = module._labeller.content = Strict()
    own = SelfDistillation(lambda model: Oracle(), start_epoch=2)
    options = {"logger": False, "enable_checkpointing": False, "check_val_every_n_epoch": 3, "callbacks": [own, Seen()]}
    trainer = Trainer(max_epochs=6, accelerator="cpu", **QUIET, **options)
    trainer.fit(
        module, PairDataModule(labelled, labelled, batch_size=4, unlabelled=(further, own.first_epoch(trainer)))
    )  # type: ignore[arg-type]
    assert [itself for itself, _ in taught] == [False] * 6 + [True] * 6, "labels change after a validation"
    before, after = ({name for itself, names in taught if itself == later for name in names} for later in (False, True))
    assert before <= known and after - known


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


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_mixed_precision_and_accumulation_train(tmp_path, options, optimizer):
    """With the student's own labels, whose descriptors are kept in half precision."""
    own = SelfDistillation(partial(FeatureTeacher, side=8), start_epoch=0)
    trainer = fit(distillation(optimizer=optimizer), tmp_path, 2, callbacks=[own], **options)
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


def test_a_validation_draws_the_same_at_any_time_and_on_any_number_of_processes():
    def drawn(batch: int, processes: int, epoch: int) -> float:
        place = SimpleNamespace(world_size=processes, global_rank=batch % processes, current_epoch=epoch)
        BatchSeed(3).on_validation_batch_start(place, None, None, batch // processes)  # type: ignore[arg-type]
        return float(torch.rand(()))

    one = [drawn(batch, 1, 0) for batch in range(6)]
    assert one == [drawn(batch, 2, 7) for batch in range(6)] == [drawn(batch, 3, 1) for batch in range(6)]
    assert len(set(one)) == 6


def test_the_rate_that_is_found_is_that_of_the_steepest_fall_per_factor_whatever_the_noise_at_the_smallest():
    rates = np.logspace(-8, 0, 100)
    losses = 2 - np.tanh(np.log10(rates) + 3) + 1e-3 * np.cos(np.pi * np.arange(100))  # steepest at 1e-3
    assert steepest(rates, losses) == pytest.approx(1e-3, rel=0.3)
    diverging = np.where(rates > 0.1, np.nan, losses)
    assert steepest(rates, diverging) == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_search_leaves_a_training_as_one_with_the_rate_that_was_found(tmp_path, optimizer, capsys):
    """Its rates, their ratios, pairs and weights are the same, also where it is resumed, which does not search again."""
    pairs, further = ShapesPairs("train", 8, 0, 32), ShapesPairs("train", 12, 1, 32)

    class Seen(Callback):
        def __init__(self):
            self.steps = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            self.steps.append((trainer.current_epoch, rates, batch.src_id))

    def run(lr, *others, until, resume=False):
        module, seen, folder = distillation(lr=lr, optimizer=optimizer), Seen(), tmp_path / str(len(others))
        module.backbone_lr = 0.1
        beside = callbacks(checkpoints(folder, None), ema=0.9)[:-1]
        beside += [StopAt(until, 0), seen, BatchSeed(0), *others]
        trainer = Trainer(max_epochs=10, accelerator="cpu", logger=False, callbacks=beside, **QUIET)
        data = PairDataModule(pairs, pairs, batch_size=2, unlabelled=(further, 2))  # type: ignore[arg-type]
        with pytest.raises(Stop):
            trainer.fit(
                module, data, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None, weights_only=True
            )
        return module, seen.steps

    searched, begun = run(1e-7, FindLearningRate(num_training_steps=30), until=3)
    found, told = capsys.readouterr()
    assert searched.lr > 1e-6 and "find_lr: 30/30 steps, " in told and f"find_lr: lr={searched.lr:.3g}\n" in found
    assert "Finding best" not in told, "Lightning's bar is no line of a log"
    resumed, rest = run(1e-7, FindLearningRate(num_training_steps=30), until=4, resume=True)
    given, expected = run(searched.lr, until=4)
    assert begun + rest == expected and len(expected) == 16
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in given.state_dict().items())
