"""Hydra's own options after a verb."""

import logging
import subprocess
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from distill.__main__ import main
from distill.cli.config import shipped
from distill.cli.hydra_app import numbered_folders
from distill.labels.store import LabelStore


def test_cfg_prints_the_configuration_of_a_verb(capsys):
    assert main(["fit", "seed=7", "--cfg", "job", "run.dir=2024_01_31"]) == 0
    shown = capsys.readouterr().out
    assert "\nseed: 7\n" in shown and "dir: '2024_01_31'" in shown and "hydra:" not in shown


def test_package_and_resolve_narrow_and_fill_what_is_shown(capsys):
    assert main(["fit", "--cfg=job", "--package=labels", "--resolve", "run.dir=somewhere"]) == 0
    assert "dir: somewhere/labels" in capsys.readouterr().out


def test_info_says_where_configurations_come_from():
    command = [sys.executable, "-m", "distill", "label", "--info", "searchpath"]
    assert str(shipped("configs")) in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("flag", ["--info", "-i"])
def test_an_override_may_follow_info(flag, capsys):
    command = [sys.executable, "-m", "distill", "label", flag, "seed=1"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 2 and "Expected a key of label but got seed" in shown.stderr
    command[-1] = "data.seed=1"
    assert "Defaults Tree" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_resolve_alone_is_refused(capsys):
    assert main(["fit", "--resolve"]) == 2
    assert "Expected --resolve beside --cfg job" in capsys.readouterr().err


def test_a_mistyped_key_is_one_line_with_hydras_options_too(capsys):
    assert main(["fit", "--cfg", "job", "sede=1"]) == 2
    assert capsys.readouterr().err.startswith("error: Expected a key of fit but got sede; did you mean 'seed'?")
    assert main(["fit", "--cfg"]) == 2
    assert "Expected a value after --cfg" in capsys.readouterr().err


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Runs in an empty folder, and takes back what Hydra changes for its jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_a_sweep_labels_every_share(tmp_path, in_a_folder, capsys):
    data = ["teacher=oracle", "data.size=32", "splits=[train]", "train.n_pairs=16", "device=cpu"]
    shares = ["label.shard=0/2,1/2", f"labels.dir={tmp_path}/labels", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert main(["label", "--multirun", *data, *shares]) == 0
    assert capsys.readouterr().out.count("points labelled") == 2
    assert len(LabelStore(tmp_path / "labels").files) == 2 and len(LabelStore(tmp_path / "labels")) > 50


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ([], "run.dir='runs/fit/${hydra:job.num}'"),
        (["run.dir='runs/a b'"], "run.dir='runs/a b/${hydra:job.num}'"),
        (["run.dir=runs/a"], "run.dir='runs/a/${hydra:job.num}'"),
        (["run.dir=runs/a,runs/b"], "run.dir=runs/a,runs/b"),
        (["run.dir='runs/${seed}'"], "run.dir='runs/${seed}'"),
    ],
)
def test_jobs_of_a_sweep_get_run_folders_of_their_own(given, folder):
    assert numbered_folders(["seed=0,1", *given], "runs/fit") == ["seed=0,1", folder]


def test_a_sweep_gives_each_job_a_folder_and_its_errors_are_one_line(tmp_path, in_a_folder, capsys):
    command = ["evaluate", "-m", "matcher=oracle,box_relative", "data.size=32", "device=cpu"]
    assert main([*command, "data.n_pairs=8", "run.dir=runs/own"]) == 0
    assert {path.name for path in (tmp_path / "runs" / "own").iterdir()} == {"0", "1"}
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # Hydra's own files are in runs/multirun
    assert len(list(tmp_path.glob("runs/multirun/*/*/multirun.yaml"))) == 1
    capsys.readouterr()
    assert main([*command, "data.n_pairs=0"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and [line for line in shown.splitlines() if line.startswith("error: ")]


def test_the_launcher_for_slurm_is_submitits():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(shipped("configs")), version_base="1.3"):
        config = hydra.compose("label", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert config.hydra.launcher["_target_"].endswith("SlurmLauncher") and config.hydra.launcher.gpus_per_node == 1
