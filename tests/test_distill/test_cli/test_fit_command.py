"""Parts of fit that need no training."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from distill.cli.commands import fit
from distill.cli.config import compose
from distill.cli.datasets import fit_pairs, pairs_of, unlabelled_pairs
from distill.cli.fit_parts import loading_processes, settle
from distill.cli.run_folder import RunFolder
from distill.data.datasets.folder import of_split


def test_a_compiled_student_is_compared_as_it_is_kept(tmp_path, monkeypatch):
    """The report's time of a pair counted the compiling."""
    done = []

    @contextmanager
    def set_stance(name):
        done.append(name)
        yield
        done.append("over")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: done.append("compile"))
    monkeypatch.setattr(torch.compiler, "set_stance", set_stance)
    monkeypatch.setattr(fit, "finish", lambda *given: done.append("compare"))
    for name in ("make_labels", "train", "keep"):
        monkeypatch.setattr(fit, name, lambda *given: None)
    small = [
        "student.backbone=test_resnet",
        "student.strides=[8,16]",
        "data.size=64",
        "teacher=oracle",
        "train.n_pairs=8",
    ]
    cfg = compose(
        "fit", [*small, "val.n_pairs=8", "test.n_pairs=8", "trainer=smoke", f"run.dir={tmp_path}/run", "compile=true"]
    )
    fit.run(cfg)
    assert done[-3:] == ["force_eager", "compare", "over"] and set(done[:-3]) == {"compile"}


@pytest.mark.parametrize("n_pairs", [4, None])
@pytest.mark.parametrize("annotated", [True, False])
def test_the_final_comparison_of_some_or_all_pairs_is_made_on_the_chosen_device(
    annotated, n_pairs, few, tmp_path, monkeypatch
):
    asked = {}

    def compare(matchers, pairs, reference="teacher", device="cpu", metrics=None, keep=None):
        asked.update(device=device, pairs=pairs, reference=reference, matchers=matchers)
        return SimpleNamespace(notes=[])

    monkeypatch.setattr(fit, "compare", compare)
    for name in ("report", "figures", "add_about"):
        monkeypatch.setattr(fit, name, lambda *arguments: None)
    parts = SimpleNamespace(
        device="meta",
        test=few if annotated else None,
        val=few,
        teacher=object(),
        baseline=torch.nn.Linear(2, 2),
        metrics={},
    )
    student = torch.nn.Linear(2, 2)
    fit.finish(OmegaConf.create({"test": {"n_pairs": n_pairs}}), parts, student, RunFolder(tmp_path))
    assert asked["device"] == "meta" and student.weight.device.type == parts.baseline.weight.device.type == "meta"
    assert ("teacher" in asked["matchers"]) == annotated
    assert asked["reference"] == ("teacher" if annotated else "student")


def test_a_baseline_may_be_left_out(few, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fit, "compare", lambda matchers, *others, **settings: SimpleNamespace(notes=[], names=[*matchers])
    )
    for name in ("report", "figures", "add_about"):
        monkeypatch.setattr(fit, name, lambda *arguments: None)
    parts = SimpleNamespace(device="cpu", test=few, val=few, teacher=object(), baseline=None, metrics={})
    comparison = fit.finish(
        OmegaConf.create({"test": {"n_pairs": 4}}), parts, torch.nn.Linear(1, 1), RunFolder(tmp_path)
    )
    assert comparison.names == ["teacher", "student", "box_relative"]


def test_without_test_pairs_nothing_is_compared(tmp_path):
    config = OmegaConf.create({"test": {"n_pairs": 0}})
    assert fit.finish(config, SimpleNamespace(), torch.nn.Linear(1, 1), RunFolder(tmp_path)) is None


def test_all_test_pairs_of_photographs_without_annotation_are_none(photos, capsys):
    data = ["data=folder", f"data.root={photos}", "data.size=32", "data.n_points=3", "val.n_pairs=4"]
    for n_pairs, reason in (("null", "nothing is annotated"), ("4", "nothing is annotated"), ("0", "test.n_pairs=0")):
        assert fit_pairs(compose("fit", [*data, f"test.n_pairs={n_pairs}", "train.n_pairs=4"]))[2] is None
        assert f"no test: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "training", "text"),
    [("cpu", "cpu", "cpu"), ("cuda:1", "cuda", "cuda:1"), ("cpu", "cuda", "cpu, training on cuda")],
)
def test_the_opening_line_names_the_devices(device, training, text):
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(training)))
    assert fit.devices(SimpleNamespace(device=device, trainer=trainer)) == text


def test_a_run_too_short_for_a_training_curve_says_so(tmp_path, capsys):
    trainer, folder = SimpleNamespace(log_every_n_steps=10, check_val_every_n_epoch=2), RunFolder(tmp_path)
    fit.say_if_nothing_was_logged(trainer, folder)
    assert "fewer than trainer.log_every_n_steps=10 steps" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    fit.say_if_nothing_was_logged(trainer, folder)
    assert capsys.readouterr().out == ""


def test_processes_load_pairs_where_a_gpu_trains_and_cores_are_left(monkeypatch):
    for cores, of_one, of_four in ((1, 0, 0), (2, 1, 0), (16, 8, 3), (64, 8, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        assert loading_processes("cpu") == 0 and loading_processes("cuda") == of_one
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert loading_processes("cpu") == 0 and loading_processes("cuda") == of_four


def test_only_the_process_that_began_a_run_removes_its_configuration_after_an_error(tmp_path):
    config = OmegaConf.create({"run": {"dir": str(tmp_path / "r")}})
    begun = RunFolder.create(config)
    with pytest.raises(ValueError), RunFolder(config.run.dir):
        raise ValueError("of a further process")
    assert (tmp_path / "r" / "config.yaml").is_file()
    with pytest.raises(ValueError), begun:
        raise ValueError("of the first")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "fast", "chosen"),
    [
        ([], True, ("muon", 4e-3, "bf16-mixed")),
        ([], False, ("muon", 4e-3, "32-true")),
        (["student=dinov2"], True, ("adamw", 1e-3, "bf16-mixed")),
        (["init_from=a.safetensors"], True, ("adamw", 1e-3, "bf16-mixed")),
        (["optimizer=muon", "lr=2e-3", "init_from=a.safetensors"], False, ("muon", 2e-3, "32-true")),
        (["optimizer=adamw", "trainer.precision=32-true"], True, ("adamw", 1e-3, "32-true")),
        (["a network of one's own"], True, ("adamw", 1e-3, "bf16-mixed")),
    ],
)
def test_what_is_left_open_is_chosen_for_the_student_and_the_machine(monkeypatch, settings, fast, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast}, raising=False)
    cfg = compose("fit", ["trainer.accelerator=cpu", *(word for word in settings if "=" in word)])
    if "a network of one's own" in settings:
        cfg.student = {"_target_": "my.Student"}
    settle(cfg)
    assert (cfg.optimizer, cfg.lr, cfg.trainer.precision) == chosen


def test_what_is_left_out_of_training_is_told(photos, capsys):
    broken = of_split([f"cat/{number}.png" for number in range(8)], "train")[:2]
    for name in broken:
        (photos / name).write_bytes(b"no picture")
    data = ["data=folder", f"data.root={photos}", "data.size=32", "data.on_error=skip", "train.n_pairs=4"]
    fit_pairs(compose("fit", [*data, "val.n_pairs=2", "test.n_pairs=0"]))
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "of split train; data check names all: Expected an image" in line]
    assert line.startswith("left out: ") and any(name in line for name in broken)


def test_pairs_without_labels_are_others_than_those_with(photos):
    small = ["data.size=32", "data.n_points=3"]
    for data, n_labelled, wanted, expected in (
        (["data=shapes"], 20, 40, 40),
        (["data=folder", f"data.root={photos}"], 4, 5, 5),
        (["data=folder", f"data.root={photos}"], 4, 1000, 8),  # twelve pairs in all
    ):
        data = data if "data=shapes" in data else [*data, *small]
        cfg = compose("fit", [*data, f"train.n_pairs={n_labelled}", f"train.unlabelled={wanted}"])
        train = pairs_of(cfg.data, "train", {"n_pairs": n_labelled})
        further = unlabelled_pairs(cfg, train)
        assert len(further) == expected and not set(map(repr, further.pairs)) & set(map(repr, train.pairs))
    everything = compose("fit", ["data=folder", f"data.root={photos}", *small, "train.n_pairs=null"])
    assert unlabelled_pairs(everything, pairs_of(everything.data, "train", {"n_pairs": None})) is None
    for setting in ("self_distillation=null", "train.unlabelled=0", "train.pairs=pairs.csv"):
        cfg = compose("fit", ["train.n_pairs=20", setting])
        assert unlabelled_pairs(cfg, pairs_of(cfg.data, "train", {"n_pairs": 20})) is None
