"""What is wrong with settings, files or the machine is one line, before any work, and leaves nothing behind."""

import json
import sys

import lightning.pytorch.loggers  # noqa: F401 - whose flags are changed below
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from distill.__main__ import main
from distill.cli.config import compose
from distill.cli.fit_parts import criteria_of
from distill.cli.interruption import Terminated
from distill.cli.unread import UNREAD
from distill.core.errors import ConfigError
from distill.data.datasets.folder import of_split

SMALL = [
    *("trainer=smoke", "student.backbone=test_resnet", "student.strides=[8,16]", "student.width=16", "data.size=64"),
    *("train.n_pairs=16", "val.n_pairs=8", "test.n_pairs=8", "teacher=oracle", "onnx=false", "pictures=0"),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error and "label shapes" not in error
    return error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("trainer.accelerator=gpu", "Expected settings of lightning.Trainer that work on this machine"),
        ("trainer.precision=half", "Precision 'half' is invalid"),
        ("trainer.max_epochs=0", "Expected at least one epoch"),
        ("device=gpu", "Expected device to name a device but got 'gpu'; did you mean 'cuda'?"),
        ("device=cuda", "finds 0; set device=auto or device=cpu"),
        ("device=mps", "Expected an Apple GPU"),
        ("num_workers=-1", "Expected num_workers of at least 0 but got -1."),
        ("num_workers=5000", "Expected num_workers of at most"),
        ("batch_size=0", "Expected batch_size of at least 1 but got 0."),
        ("lr=-1", "Expected lr and backbone_lr to be positive but got -1"),
        ("weight_decay=-1", "Expected weight_decay of at least 0 but got -1"),
        ("lr=nan", "Expected finite numbers for lr but got nan."),
        ("lr=inf", "Expected finite numbers for lr but got inf."),
        ("backbone_lr=-1", "Expected lr and backbone_lr to be positive but got 0.004 and -1"),
        ("optimizer=moun", "Expected a known optimizer but got 'moun'; did you mean 'muon'? valid names: adamw, muon"),
        ("loss.terms.heatmap.sharpness=nan", "Expected finite numbers for loss.terms.heatmap.sharpness but got nan."),
        ("augment.scale=inf", "Expected finite numbers for augment.scale but got inf."),
        ("student.strides=[8,nan]", "Expected finite numbers for student.strides but got [8, nan]."),
        ("weight_decay=inf", "Expected finite numbers for weight_decay but got inf."),
        ("warmup=2", "Expected warmup"),
        ("train.unlabelled=-1", "Expected train.unlabelled of at least 0 but got -1."),
        ("monitor=val/foo", "but got 'val/foo'"),
        (
            "self_distillation.start_epoch=0",
            "Expected a trained student in init_from for self_distillation.start_epoch=0",
        ),
        ("experiment=shapes_hard", "Expected a trained student in init_from for self_distillation.start_epoch=0"),
        ("+self_distillation.teacher.foo=1", "settings in self_distillation.teacher that it takes but got: Fea"),
        ("student.weights=pretrained", "connect to the network, or name a file or folder"),
        ("student.backbone=resnet99", "did you mean 'resnet50'?"),
        ("seed=-1", "Expected seed of at least 0 but got -1."),
        ("data.seed=-1", "Expected data.seed of at least 0 but got -1."),
        ("seed=4294967296", "Expected seed of at most 4294967295 but got 4294967296."),
        ("loss.terms={}", "Expected parts for loss.terms but got an empty mapping, which leaves it as it is"),
        ("points=5", "Expected settings with a _target_ but got 5; write null"),
        ("filter.curriculum=5", "Expected settings with a _target_ but got 5; write null"),
        ("truth.repeat=2", "fit does not read truth.repeat here; it belongs to truth.points="),
        ("trainer.accumulate_grad_batches=2", "+trainer.accumulate_grad_batches=... adds one."),
        (
            "callbacks={e:{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/los}}",
            "Expected callbacks.e.monitor to name a figure but got 'val/los'; did you mean 'val/loss'?",
        ),
        (
            "callbacks={k:{_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:foo}}",
            "Expected callbacks.k.monitor to name a figure but got 'foo'",
        ),
        ("pictures=-1", "Expected pictures of at least 0"),
        ("trainer.check_val_every_n_epoch=0", "Expected trainer.check_val_every_n_epoch of at least 1 but got 0"),
        ("+trainer.accumulate_grad_batches=0", "Expected trainer.accumulate_grad_batches of at least 1 but got 0"),
        ("trainer.gradient_clip_val=-1", "Expected trainer.gradient_clip_val of at least 0 but got -1"),
        ("loss.weights.heatmap=-1", "Expected weights of at least 0, and one above it, but got"),
        ("labels.fallbacks=[typo]", "Expected a folder of labels in labels.fallbacks but there is none at typo"),
        ("self_distillation.teacher.side=0", "Expected a strength of neighbourhood consensus"),
        ("val.n_pairs=0", "Expected val.n_pairs of at least 1 but got 0"),
        ("train.n_pairs=0", "Expected train.n_pairs of at least 1 but got 0"),
        ("train.n_pairs=-3", "Expected train.n_pairs of at least 0"),
        ("student=null", "Expected a choice of student but got none"),
        ("~teacher", "Expected a choice of teacher but got none"),
        ("~augment", "write augment=null to leave it out"),
        ("~augment.rotation=99", "Expected augment.rotation to be 99 but it is 8.0; write ~augment.rotation alone."),
        ("+trainer.max_epochs=3", "there is one of this name; write trainer.max_epochs=, without +"),
        ("callbacks.x=3", "got callbacks.x; +callbacks.x=... adds one."),
        ("+callbacks.x=3", "Expected callbacks.x to describe a lightning Callback"),
        ("+metrics.x=3", "Expected metrics.x to describe a torchmetrics Metric"),
        ("data._target_=builtins.dict", "but dict has no name, split, threshold; add what is missing."),
        ("student.strides=8", "Expected a list for student.strides but got 8; write student.strides=[8]."),
        ("teacher._target_=student.FeatureTeachr", "student has no 'FeatureTeachr'; did you mean 'FeatureTeacher'?"),
        (
            "teacher._target_=nosuch.Thing",
            "nosuch.Thing does not: there is no module 'nosuch'; install its package, or set",
        ),
        ("teacher._target_=Thing", "Expected _target_ as <module>.<name> but got 'Thing'"),
        ("teacher._target_=''", "Expected _target_ as <module>.<name> but got ''"),
        ("teacher._target_=student.matcher.StudentMatcher.nope", "student.matcher.StudentMatcher has no 'nope'"),
        ("loss.terms.heatmap._target_=distill.losses.heatmap.Nope", "distill.losses.heatmap has no 'Nope'"),
        ("augment._target_=5", "Expected _target_ as <module>.<name> but got 5"),
    ],
)
def test_fit_refuses_before_it_labels_and_leaves_no_folder(extra, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    if "accelerator" in extra and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in refused(["fit", *SMALL, f"run.dir={tmp_path}/r", extra], capsys)
    assert not list(tmp_path.iterdir())


def test_an_empty_mapping_is_refused_for_a_criterion_that_it_would_leave_there(tmp_path, capsys):
    given = ["fit", *SMALL, f"run.dir={tmp_path}/r", "filter=agreement", "filter.criteria={}"]
    assert "write ~filter.criteria.agreement to leave a part out." in refused(given, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["fit", *SMALL], ["evaluate", "matcher=oracle"]])
def test_a_name_that_is_too_long_is_one_line(arguments, tmp_path, capsys):
    message = refused([*arguments, f"run.dir={tmp_path}/{300 * 'n'}"], capsys)
    assert "Expected names that the file system takes but got one of" in message and message.count("n") < 200


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")]
)
def test_what_goes_wrong_while_a_command_ends_does_not_hide_that_it_was_ended(sent, code, word, capsys, monkeypatch):
    """SIGTERM to a whole process group ended fit with code 1 and a traceback about its loading processes."""

    def dispatch(arguments: list[str]) -> None:
        try:
            raise sent
        finally:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    monkeypatch.setattr("distill.__main__._dispatch", dispatch)
    assert main(["fit"]) == code
    assert capsys.readouterr().err == f"{word}, go on with run.resume=true\n"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_before_labels_are_made(name, tmp_path, capsys, monkeypatch):
    requirement = {"tensorboard": "_TENSORBOARD_AVAILABLE", "wandb": "_WANDB_AVAILABLE", "mlflow": "_MLFLOW_AVAILABLE"}
    for module in [m for m in sys.modules if m.startswith("lightning.") and "loggers" in m]:
        for flag in (requirement[name], "_TENSORBOARDX_AVAILABLE"):
            if hasattr(sys.modules[module], flag):
                monkeypatch.setattr(f"{module}.{flag}", False)
    assert name in refused(["fit", *SMALL, f"run.dir={tmp_path}/r", f"logger={name}"], capsys).lower()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "matcher=oracle"],
        ["label", "teacher=oracle", "labels.dir={tmp}/l"],
        ["compare", "ckpt=none.safetensors"],
        ["bench", "what=[loader]"],
        ["match", "src={tmp}/photos/cat/0.png", "trg={tmp}/photos/cat/1.png", "points=[[9,9]]", "matcher=oracle"],
        ["pretrain"],
    ],
)
def test_every_verb_refuses_a_device_that_there_is_not(arguments, photos, tmp_path, capsys):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    run = [] if arguments[0] == "label" else [f"run.dir={tmp_path}/r"]
    assert "got 'gpu'; did you mean 'cuda'?" in refused([*arguments, *run, "device=gpu"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_experiment_whose_weights_cannot_be_fetched_says_so(photos, tmp_path, capsys):
    arguments = ["fit", "experiment=folder_sd15", f"data.root={photos}", f"run.dir={tmp_path}/r"]
    assert "connect to the network" in refused(arguments, capsys)
    arguments = ["data", "pair", "data=folder", f"data.root={photos}", "describer.weights=pretrained"]
    assert "connect to the network" in refused([*arguments, f"run.dir={tmp_path}/r"], capsys)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("verb", "overrides", "keys"),
    [
        ("fit", ["data.n_pairs=5", "data.split=val"], "data.n_pairs, data.split"),
        ("label", ["data.n_pairs=5"], "data.n_pairs"),
        ("label", ["label.sources=[a]"], "label.sources"),
        ("label", ["label.action=status", "label.shard=0/2"], "label.shard"),
        ("label", ["label.action=export", "data=shapes", "label.file=a"], "data"),
        ("evaluate", ["matcher=oracle", "ckpt=a"], "ckpt"),
        ("evaluate", ["ckpt=a", "file=b"], "file"),
        ("match", ["matcher=oracle", "file=b", "src=a", "trg=b", "points=[]"], "file"),
        ("data", ["pairs_per_image=2"], "pairs_per_image"),
        ("data", ["action=check", "images=2"], "images"),
        ("bench", ["what=[loader]", "batches=[1]"], "batches"),
        (
            "bench",
            ["what=[labels]", "ablation=true", "paper.steps=3", "reference_pairs=5"],
            "ablation, paper.steps, reference_pairs",
        ),
        ("bench", ["what=[teacher]", "teacher=dift", "ablation=true", "ablation_pairs=2"], "ablation, ablation_pairs"),
        ("export", ["ckpt=a", "data.split=test", "data.n_pairs=5"], "data.split, data.n_pairs"),
        ("export", ["ckpt=a", "data.size=448"], "data.size"),
        ("export", ["ckpt=a", "bundle=b", "file=s.onnx", "precision=fp16"], "file, precision"),
        ("export", ["ckpt=a", "bundle=b", "data=cub", "data.root=c"], "data, data.root"),
        ("export", ["ckpt=a", "page=b", "file=s.onnx"], "file"),
        ("export", ["ckpt=a", "examples=[a.jpg,b.jpg]"], "examples"),
        ("ablate", ["suite=consensus", "seeds=[1]"], "seeds"),
    ],
)
def test_a_key_without_an_effect_is_an_error(verb, overrides, keys):
    with pytest.raises(ConfigError, match=f"{verb} does not read {keys} here"):
        compose(verb, overrides)


def test_keys_with_an_effect_are_taken():
    compose("label", ["label.action=status", "label.coverage=true", "data.size=32"])
    compose("match", ["matcher=rescored", "ckpt=a", "src=a", "trg=b", "points=[]"])
    compose("bench", ["what=student", "batches=[1]"])
    compose("bench", ["what=teacher", "teacher=dift", "reference_pairs=0"])
    compose("bench", ["what=teacher", "teacher=prompt_optimization_paper", "ablation=true", "paper.steps=3"])
    compose("data", ["action=pair", "pairs_per_image=2"])
    compose("ablate", ["suite=shapes", "seeds=[1]"])
    compose("export", ["ckpt=a", "file=s.onnx", "precision=int8", "calibration_pairs=4", "data=cub", "data.root=c"])
    compose("export", ["ckpt=a", "page=b", "precision=fp16", "examples=[a.jpg,b.jpg]", "gate_pairs=4"])
    assert set(UNREAD) <= {"fit", "label", "evaluate", "match", "data", "bench", "propagate", "export", "ablate"}


def test_a_start_that_fails_while_it_works_does_not_refuse_the_corrected_command(tmp_path, capsys, monkeypatch):
    def fail(*arguments, **settings):
        raise ConfigError("Expected a teacher but got a toaster.")

    arguments = ["fit", *SMALL, f"run.dir={tmp_path}/r", "test.n_pairs=0", "device=cpu", "trainer.accelerator=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr("distill.cli.commands.fit.train", fail)
        assert main(arguments) == 2
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"labels"}
    assert main(arguments) == 0
    assert (tmp_path / "r" / "student.safetensors").is_file()
    assert "train: 16/16 pairs, read" in capsys.readouterr().err, "labels are made once"
    assert main([*arguments, "run.resume=true", "student.width=64", "lr=1"]) == 2
    assert "got lr=1 (0.004 before), student.width=64 (16 before)" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "run.resume=true continues it" in capsys.readouterr().err


def test_photographs_without_annotation_are_fitted_at_the_first_attempt(photos, tmp_path, capsys):
    teacher = ["teacher=nearest_neighbour", "teacher.model.backbone=test_resnet"]
    student = [setting for setting in SMALL if setting.startswith(("trainer", "student", "data", "onnx", "pictures"))]
    arguments = ["fit", "data=folder", f"data.root={photos}", f"run.dir={tmp_path}/r", *teacher, *student]
    assert main([*arguments, "data.n_points=3", "device=cpu", "trainer.accelerator=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "pairs:   12 training, 2 validation, no test: nothing is annotated" in shown
    assert f"fit: a student on folder; on cpu; in {tmp_path}/r" in shown and shown.strip().endswith(
        f"report: {tmp_path}/r/report.html"
    )
    report = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert [row["matcher"] for row in report["matchers"]] == ["student", "nearest_neighbour", "box_relative"]
    assert report["matchers"][0]["n_points"] == 6 and "Nothing is annotated" in report["notes"][0]
    lines = (tmp_path / "r" / "metrics.jsonl").read_text()
    assert "NaN" not in lines and any(json.loads(line).get("val/pck@0.10", 0) is None for line in lines.splitlines())


def test_test_pairs_without_a_common_point_are_refused_before_labels_are_made(photos, tmp_path, capsys):
    rows = [f"cat/{number}.png,part {number},10,10" for number in range(8)]
    (photos / "points.csv").write_text("\n".join(["image,part,x,y", *rows]))
    arguments = ["fit", "data=folder", f"data.root={photos}", f"run.dir={tmp_path}/r", "teacher=oracle"]
    student = [setting for setting in SMALL if setting.startswith(("trainer", "student", "data", "test"))]
    message = (
        "Expected pairs of split train of folder whose images have an annotated part in common but none of the 12 has"
    )
    assert message in refused([*arguments, *student], capsys)
    assert message in refused([*arguments, *student, "test.n_pairs=0"], capsys), "which failed only after the training"
    label = ["label", "data=folder", f"data.root={photos}", f"labels.dir={tmp_path}/l", "teacher=oracle", "device=cpu"]
    assert message in refused(label, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert main(["data", "check", "data=folder", f"data.root={photos}"]) == 2
    assert "problem: Expected pairs of split all of folder" in capsys.readouterr().out
    parts = [f"cat/{n}.png,{'ear' if f'{n}' in train(photos) else 'tail'},10,10" for n in range(8)]
    (photos / "points.csv").write_text("\n".join(["image,part,x,y", *parts]))
    assert main(["data", "check", "data=folder", f"data.root={photos}"]) == 0
    assert "note: 32 of the 56 pairs have no annotated part in common" in capsys.readouterr().out


def train(root) -> set[str]:
    """The numbers of the photographs that are for training."""
    return {name[4:-4] for name in of_split([f"cat/{number}.png" for number in range(8)], "train")}


def test_label_takes_a_folder_that_is_too_small_to_test_on(tmp_path, capsys):
    for number in range(5):
        Image.new("RGB", (40, 30), (number * 40, 9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for number in range(5):
        (tmp_path / f"{number}.png").rename(tmp_path / "photos" / "cat" / f"{number}.png")
    data = ["data=folder", f"data.root={tmp_path}/photos", "data.size=32", "data.n_points=2", "device=cpu"]
    teacher = ["teacher=nearest_neighbour", "teacher.model.backbone=test_resnet", f"labels.dir={tmp_path}/l"]
    assert main(["label", *data, *teacher]) == 0
    shown = capsys.readouterr().out
    assert "note: split test is left out: Expected 8 photographs of one category" in shown
    assert "label: 6 train pairs of folder, 2 val pairs of folder" in shown
    assert "Expected 8 photographs of one category" in refused(["label", *data, *teacher, "splits=[test]"], capsys)


@pytest.mark.parametrize("verb", [["data", "check"], ["fit"], ["label", "labels.dir=l"]])
def test_a_folder_that_is_not_there_is_said_to_be_missing(verb, tmp_path, capsys):
    message = f"Expected a folder of photographs in data.root but there is none at {tmp_path}/none"
    assert message in refused([*verb, "data=folder", f"data.root={tmp_path}/none"], capsys)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file is a file" in refused([*verb, "data=folder", f"data.root={tmp_path}/file"], capsys)


def test_check_says_what_fit_does_with_photographs_that_are_not_annotated(photos, capsys):
    assert main(["data", "check", "data=folder", f"data.root={photos}"]) == 0
    assert (
        "fit uses 4 photographs for training and 2 for validation; 2 are set aside for a test, which needs annotated points"
        in capsys.readouterr().out
    )


def test_check_says_where_validation_uses_the_photographs_of_training(photos, capsys):
    """It said "0 for validation" where fit validates on 6 pairs."""
    for number in range(3, 8):
        (photos / "cat" / f"{number}.png").unlink()
    assert main(["data", "check", "data=folder", f"data.root={photos}"]) == 0
    assert "fit uses 3 photographs for training and the same for validation\n" in capsys.readouterr().out


def test_photographs_directly_in_the_folder_are_of_one_category(photos, capsys):
    assert main(["data", "check", "data=folder", f"data.root={photos / 'cat'}"]) == 0
    assert "fit uses 4 photographs for training and 2 for validation" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["status", "verify", "repair", "export"])
def test_a_folder_without_labels_is_no_label_store(action, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    file = [f"label.file={tmp_path}/x.csv"] if action == "export" else []
    message = f"Expected labels in {tmp_path}/empty but found none; set labels.dir."
    assert message in refused(["label", action, f"labels.dir={tmp_path}/empty", *file], capsys)
    assert "found none" in refused(["label", action, f"labels.dir={tmp_path}/typo", *file], capsys)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("repeats=0", "Expected repeats of at least 1 but got 0."),
        ("batches=[0]", "Expected batches to list numbers of pairs of at least 1 but got [0]"),
        ("batches=[]", "Expected batches to list numbers of pairs of at least 1 but got []"),
        ("batches=[1.5]", "Expected batches to list numbers of pairs of at least 1 but got [1.5]"),
        ("batches=[true]", "Expected batches to list numbers of pairs of at least 1 but got [True]"),
        ("threads=[0]", "Expected threads to list numbers of threads of at least 1 but got [0]; write threads=[1,2]."),
        ("threads=[]", "Expected threads to list numbers of threads of at least 1 but got []"),
    ],
)
def test_bench_refuses_numbers_that_measure_nothing(extra, message, tmp_path, capsys):
    assert message in refused(["bench", "what=[student]", extra, f"run.dir={tmp_path}/r", "device=cpu"], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["what=[labels,student]", "precisions=[fp8]"], "Expected precisions among"),
        (["what=[labels,student]", "threads=[0]"], "Expected threads to list"),
        (["what=[labels,student]", "ckpt=none.safetensors"], "none.safetensors"),
        (["what=[labels,teacher]", "teacher=nearest_neighbour", "teacher_pairs=9"], "between 1 and 4 to measure on"),
    ],
)
def test_bench_refuses_settings_of_its_last_part_before_it_measures_the_first(
    extra, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("distill.cli.commands.bench.label_rates", lambda labels: pytest.fail("measured"))
    shared = ["labels=8000", "data.n_pairs=4", f"run.dir={tmp_path}/r", "device=cpu"]
    assert message in refused(["bench", *extra, *shared], capsys)
    assert not list(tmp_path.iterdir())


def test_an_error_in_a_later_part_of_bench_loses_nothing_that_was_measured(tmp_path, capsys, monkeypatch):
    row = {"what": "labels", "variant": "write", "batch": 1, "threads": 1, "latency_ms": 1.0}
    monkeypatch.setattr("distill.cli.commands.bench.label_rates", lambda labels: [row])
    settings = ["what=[labels,teacher]", "teacher=nearest_neighbour", "teacher.model.backbone=resnet1O"]
    message = refused(["bench", *settings, "data.n_pairs=4", f"run.dir={tmp_path}/r", "device=cpu"], capsys)
    assert "did you mean" in message
    assert json.loads((tmp_path / "r" / "bench.json").read_text())["rows"] == [row]


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        (["bench", "what=[labels]"], "labels=0"),
        (["bench", "what=[teacher]"], "ablation_pairs=0"),
        (["bench", "what=[teacher]"], "reference_pairs=-1"),
        (["export", "ckpt=x"], "gate_pairs=-1"),
        (["export", "ckpt=x"], "calibration_pairs=-1"),
        (["label"], "label.flush_seconds=-1"),
        (["label"], "label.batch_seconds=-1"),
    ],
)
def test_counts_below_the_least_that_makes_sense_are_refused(verb, key, capsys):
    name, value = key.split("=")
    assert f"Expected {name} of at least {1 if value == '0' else 0} but got {value}." in refused([*verb, key], capsys)


@pytest.mark.parametrize(
    ("pairs", "word"), [(0, "training pairs to calibrate int8 on"), (-1, "calibration_pairs of at")]
)
def test_eight_bits_without_pairs_are_refused_under_the_key_that_says_how_many(pairs, word, tmp_path, capsys):
    """It was "Expected train.n_pairs of at least 1", which the command does not have."""
    arguments = ["bench", "student", "precisions=[int8]", f"calibration_pairs={pairs}", f"run.dir={tmp_path}/r"]
    told = refused(arguments, capsys)
    assert word in told and "calibration_pairs" in told and ".n_pairs" not in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["filter.criteria={a: 5}"], "Expected filter.criteria.a to describe a criterion by its _target_ but got 5"),
        (["filter=agreement", "baseline=null"], "Expected a matcher for filter.criteria.agreement but got none"),
        (
            ["self_distillation.teacher=null"],
            "Expected self_distillation.teacher to describe what makes labels but got None",
        ),
    ],
)
def test_what_is_no_criterion_or_no_teacher_is_refused_before_labels_are_made(given, message, tmp_path, capsys):
    assert message in refused(["fit", *SMALL, *given, f"run.dir={tmp_path}/r"], capsys)
    assert not (tmp_path / "r").exists()


def test_null_leaves_a_criterion_out():
    """It was a traceback after the labels were made."""
    config = compose("fit", [*SMALL, "filter=agreement", "filter.criteria.agreement=null"])
    assert criteria_of(config) == {}
    assert set(criteria_of(compose("fit", [*SMALL, "filter=agreement"]))) == {"agreement"}


@pytest.mark.parametrize("verb", [["evaluate", "matcher=oracle"], ["compare", "matchers=[oracle]"], ["fit", *SMALL]])
def test_a_metric_that_takes_something_else_is_refused_before_the_first_pair(verb, tmp_path, capsys):
    """A traceback came from torchmetrics, of a fit after its training."""
    metric = "+metrics.mine={_target_: torchmetrics.MeanMetric}"
    told = refused([*verb, metric, f"run.dir={tmp_path}/r"], capsys)
    assert (
        "metrics.mine to have update(predicted, truth, kps_mask, pck_threshold) but MeanMetric.update takes (value"
        in told
    )
    assert not (tmp_path / "r").exists()


def test_a_fit_replaces_no_weights_that_lie_in_its_folder(tmp_path, capsys):
    (tmp_path / "student.safetensors").write_bytes(b"of another training")
    arguments = ["fit", *SMALL, f"run.dir={tmp_path}", f"init_from={tmp_path}/student.safetensors", "device=cpu"]
    assert f"{tmp_path}/student.safetensors is there, which the run would replace" in refused(arguments, capsys)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of another training"]


def test_a_pretraining_does_not_replace_the_pipeline_that_it_starts_from(tmp_path, capsys):
    (tmp_path / "pipeline").mkdir()
    arguments = ["pretrain", f"run.dir={tmp_path}", f"diffusion.init_from={tmp_path}/pipeline"]
    assert "Expected diffusion.init_from to be another folder than" in refused(arguments, capsys)


def test_results_of_earlier_weights_do_not_outlive_a_resumed_run(tmp_path, capsys):
    arguments = ["fit", *SMALL, f"run.dir={tmp_path}/r", "device=cpu", "trainer.accelerator=cpu", "test.n_pairs=0"]
    assert main(arguments) == 0
    old = ["student.onnx", "metrics.json", "report.md", "report.html", "matches.png"]
    old += [
        "predictions/student.npz",
        "predictions/teacher.npz",
    ]  # which compare matchers=[...] would score as this run's
    (tmp_path / "r" / "predictions").mkdir()
    (tmp_path / "r" / "matches").mkdir(exist_ok=True)
    for name in [*old, "matches/first.png"]:
        (tmp_path / "r" / name).write_text("of the first epochs")
    assert main([*arguments, "run.resume=true", "trainer.max_epochs=2"]) == 0
    assert f"removed: {', '.join(old)}, which belong to earlier weights" in capsys.readouterr().out
    assert not any((tmp_path / "r" / name).exists() for name in old)
    assert (tmp_path / "r" / "matches" / "first.png").is_file()  # of the run's course
    assert (tmp_path / "r" / "student.safetensors").is_file()


def test_label_leaves_a_split_out_that_has_no_pairs(tmp_path, capsys):
    few = ["train.n_pairs=4", "val.n_pairs=0", "test.n_pairs=0", "data.size=32", "device=cpu"]
    assert main(["label", "teacher=oracle", f"labels.dir={tmp_path}/l", *few]) == 0
    assert f"label: 4 train pairs of shapes; on cpu; in {tmp_path}/l" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_is_resumed_with_its_settings(tmp_path, capsys):
    former = ["student.consensus=3.0", "student.consensus_tolerance=0.0", "self_distillation.teacher.consensus=3.0"]
    former += ["self_distillation.teacher.scale=1.0", "teacher=nearest_neighbour", "teacher.model.backbone=test_resnet"]
    arguments = [
        "fit",
        *SMALL,
        f"run.dir={tmp_path}/r",
        "test.n_pairs=0",
        "device=cpu",
        "trainer.accelerator=cpu",
        *former,
    ]
    assert main([*arguments, "optimizer=adamw", "train.unlabelled=0"]) == 0
    file = tmp_path / "r" / "config.yaml"
    config = OmegaConf.load(file)
    # What version 0.1 had no setting for, of what is used here.
    del config.optimizer, config.train.unlabelled, config.truth, config.loss.terms.warp.colour
    del config.student.consensus_sigma, config.student.consensus_tolerance, config.student.debias, config.student.scales
    of_itself, teacher = config.self_distillation.teacher, config.teacher
    del of_itself.consensus, of_itself.consensus_tolerance, of_itself.scale
    del teacher.consensus_tolerance, teacher.model.debias, teacher.model.scales
    OmegaConf.save(config, file)
    assert main([*arguments, "run.resume=true", "optimizer=muon"]) == 2
    told = "lr=0.004 (0.001 before), optimizer=muon (adamw before), train.unlabelled=7200 (0 before)"
    assert told in capsys.readouterr().err
    assert main([*arguments, "run.resume=true", "optimizer=adamw", "train.unlabelled=0"]) == 0
