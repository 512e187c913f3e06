"""One command on two processes, as Lightning starts them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from distill.__main__ import main
from distill.cli import processes
from distill.cli.commands import fit
from distill.cli.config import compose
from distill.cli.fit_parts import build, settle
from distill.cli.interruption import STARTER
from distill.labels.audit import audit
from distill.labels.store import LabelStore
from distill.training.train import filter_labels

DATA = ["teacher=oracle", "data.size=32", "train.n_pairs=24", "val.n_pairs=11", "test.n_pairs=0", "device=cpu"]
FIT = [*DATA, "student.backbone=test_convnext", "student.strides=[8,16]", "student.width=8", "batch_size=4"]
TRAINER = ["trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distill", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(*arguments: str) -> str:
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_share_the_labelling_and_the_verb_reaches_the_second(tmp_path):
    data = [*DATA[:-2], "splits=[train,val]", "device=cpu", "trainer.devices=2", "label.flush_seconds=0"]
    shown = run("label", f"labels.dir={tmp_path}/two", *data)
    assert main(["label", f"labels.dir={tmp_path}/one", *data[:-2], "label.compact=true"]) == 0
    found, one = audit(tmp_path / "two"), LabelStore(tmp_path / "one")
    assert found.problems == [] and found.labels == len(one) > 100
    assert f"{len(one)} points labelled, {len(one)} labels in" in shown  # both shares, each point once
    LabelStore(tmp_path / "two").compact()
    files = [sorted(path.name for path in (tmp_path / name).glob("*.safetensors")) for name in ("one", "two")]
    assert files[0] == files[1]


ON_TWO_GPUS = """
import json, os, sys
from pathlib import Path
from unittest import mock
from distill.__main__ import main
from distill.cli import processes
from distill.labels import generate

choose_device, sent = processes.choose_device, []

def on_two_gpus(name, gpus):
    with mock.patch("torch.cuda.is_available", lambda: True), mock.patch("torch.cuda.device_count", lambda: 2):
        return choose_device(name, gpus)

processes.choose_device = on_two_gpus
generate.to_device = lambda pairs, device: sent.append([device, len(pairs.category)]) or pairs
code = main(sys.argv[2:])
Path(sys.argv[1], os.environ["LOCAL_RANK"]).write_text(json.dumps(sent))
sys.exit(code)
"""
"""The verb on a CPU, as on a machine that says it has two GPUs; writes down which pairs would have been sent where."""


@pytest.mark.slow
def test_under_torchrun_each_process_labels_its_share_on_a_gpu_of_its_own(tmp_path):
    (tmp_path / "program.py").write_text(ON_TWO_GPUS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    data = [*DATA[:-1], "splits=[train,val]", "trainer.devices=2", "trainer.accelerator=cpu"]
    arguments = [f"{tmp_path}/program.py", str(tmp_path), "label", f"labels.dir={tmp_path}/labels", *data]
    done = subprocess.run([*torchrun, *arguments], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shares = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
    assert [{device for device, _ in share} for share in shares] == [{"cuda:0"}, {"cuda:1"}]
    pairs = [sum(number for _, number in share) for share in shares]
    assert sum(pairs) == 24 + 11 and min(pairs) > 10
    assert audit(tmp_path / "labels").problems == []


@pytest.mark.slow
def test_on_two_processes_fit_validates_as_one_process_does(tmp_path):
    # Known warps are drawn anew at each validation, by each process for its own pairs: their loss cannot be the same.
    settings = [
        *FIT,
        *TRAINER,
        "loss=distillation",
        "trainer.max_epochs=2",
        "trainer.precision=32-true",
        f"run.dir={tmp_path}/two",
        "filter=agreement",
        "onnx=false",
    ]
    shown = run("fit", *settings, "trainer.devices=2")
    assert (tmp_path / "two" / "student.safetensors").exists()
    cfg = compose("fit", [*settings, f"run.dir={tmp_path}/one", f"labels.dir={tmp_path}/two/labels"])
    settle(cfg)
    parts = build(cfg)
    state = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    kept = filter_labels(parts.module, parts.criteria, parts.labelled, 4, "cpu", progress=False)
    assert shown.count("labels:  ") == 1 and f"labels:  {kept}\n" in shown, "found by both together, told by one"
    parts.module.load_state_dict(state["state_dict"])
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (one,) = trainer.validate(parts.module, parts.data, verbose=False)
    two = [row for row in rows(tmp_path / "two") if "val/loss" in row][-1]
    assert state["global_step"] == 6 and one.keys() == two.keys() - {"step"} - {"epoch"} and len(one) > 4
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_weights_that_no_loss_reaches_are_told_in_one_line(tmp_path):
    settings = ["student.refinement=8", "loss=distillation", "loss.terms.points=null", "loss.weights.points=null"]
    arguments = [*FIT, *TRAINER, *settings, f"run.dir={tmp_path}/run", "onnx=false", "trainer.devices=2"]
    done = subprocess.run(command("fit", *arguments), env=environment(), capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert told and all("Expected losses that reach all weights" in line for line in told)


def test_an_average_that_cannot_be_sent_to_other_processes_is_refused(tmp_path, capsys):
    arguments = [*FIT, *TRAINER, f"run.dir={tmp_path}/run", "trainer.devices=2", "trainer.strategy=ddp_spawn"]
    assert main(["fit", *arguments]) == 2
    assert "Expected ema=null with trainer.strategy=ddp_spawn" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_further_processes_end_with_the_first(tmp_path):
    """The second one went on labelling for itself when only the first was told to end."""
    data = [*DATA, "train.n_pairs=800", "labels.fallbacks=[]", "trainer.devices=2", f"labels.dir={tmp_path}/l"]
    teacher = ["teacher=nearest_neighbour", "teacher.model.backbone=test_resnet", "data.size=64"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command("label", *data, *teacher), env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while "label: 800 train pairs" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 143
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert members(process.pid) == []
    shown = (tmp_path / "log").read_text()
    assert shown.count("terminated, the labels made so far are kept") == 1 and "Traceback" not in shown
    assert audit(tmp_path / "l").problems == []


def members(group: int) -> list[int]:
    """The numbers of the living processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True).stdout.split("\n")[1:]
    rows = (line.split() for line in listed if line)
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


FAILING = """
import os, time
from distill.core.errors import DataError
from distill.matchers.oracle import Oracle

class Failing(Oracle):
    calls = 0

    def match_pairs(self, pairs):
        self.calls += 1
        time.sleep(0.05)
        if os.environ.get("LOCAL_RANK") == "1" and self.calls > 3:
            raise DataError("Expected a photograph but got none; look.")
        return super().match_pairs(pairs)
"""


@pytest.mark.slow
def test_a_command_ends_when_one_of_its_processes_fails_and_keeps_the_labels_of_all(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    data = [*DATA, "train.n_pairs=800", "labels.fallbacks=[]", "trainer.devices=2", f"labels.dir={tmp_path}/l"]
    settings = [*data, "teacher._target_=failing.Failing", "splits=[train]", "label.batch_size=2"]
    done = subprocess.run(command("label", *settings), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("error: Expected a photograph but got none; look.") == 1 and "Traceback" not in done.stderr
    assert (
        "process 1 of 2 failed with exit code 2, see above; mend that, the labels made so far are kept" in done.stderr
    )
    found = audit(tmp_path / "l")
    assert found.problems == [] and len(found.shards) == 2, "one of each process"
    assert 0 < found.labels < 2500, "the other process alone has 400 pairs with 3000 points"


def test_more_processes_than_validation_batches_are_refused_before_labels_are_made(tmp_path, monkeypatch, capsys):
    """11 pairs in batches of 4 are 3 batches. No process is started, so that this one will do, which tests run in."""
    monkeypatch.setattr(processes, "check_command_line", lambda: None)
    monkeypatch.setattr(fit, "start_others", lambda trainer: pytest.fail("a process was started"))
    monkeypatch.setenv(STARTER, "none")  # put back afterwards
    arguments = ["fit", *FIT, *TRAINER, "trainer.devices=4", f"run.dir={tmp_path}/r"]
    assert main(arguments) == 2
    assert "batch for each of 4 processes but got 3 of 4 pairs" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
