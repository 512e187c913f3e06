"""One command on two processes, as Lightning starts them, and a training that is killed and goes on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from distill.__main__ import main
from distill.cli.commands.fit import _distillation as distillation
from distill.cli.config import compose, instantiate
from distill.cli.datasets import pairs_of
from distill.data.datamodule import PairDataModule
from distill.labels.audit import audit
from distill.labels.cached import Cached
from distill.labels.store import LabelStore

FORK = multiprocessing.get_context("fork")  # so that what is killed need not import torch again
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


@pytest.fixture
def one_thread():
    """Threads do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.slow
def test_on_two_processes_fit_validates_as_one_process_does(tmp_path):
    # Known warps are drawn anew at each validation, by each process for its own pairs: their loss cannot be the same.
    settings = [*FIT, *TRAINER, "loss=distillation", "trainer.max_epochs=2", f"run.dir={tmp_path}/two"]
    run("fit", *settings, "trainer.devices=2")
    assert (tmp_path / "two" / "student.onnx").exists()
    cfg = compose("fit", settings)
    teacher = Cached(cfg.labels.dir, instantiate(cfg.teacher), read_only=True)
    module = distillation(cfg, instantiate(cfg.student), teacher)
    state = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    module.load_state_dict(state["state_dict"])
    val = pairs_of(cfg.data, "val", cfg.val)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (one,) = trainer.validate(module, PairDataModule(val, val, cfg.batch_size), verbose=False)
    two = [row for row in rows(tmp_path / "two") if "val/loss" in row][-1]
    assert state["global_step"] == 6 and one.keys() == two.keys() - {"step"} - {"epoch"} and len(one) > 4
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_a_killed_fit_resumes_and_ends_with_the_same_weights_bit_for_bit(tmp_path, one_thread):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = [*FIT, *TRAINER, "trainer.max_epochs=4"]
    process = FORK.Process(target=main, args=(["fit", f"run.dir={killed}", *settings],))
    process.start()
    deadline = time.monotonic() + 200
    # Six steps make an epoch: the second has begun, and the checkpoint of the first is there.
    while time.monotonic() < deadline and not ((killed / "metrics.jsonl").exists() and len(rows_so_far(killed)) > 8):
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (killed / "student.safetensors").exists()
    assert main(["fit", f"run.dir={killed}", "run.resume=true", *settings]) == 0
    assert main(["fit", f"run.dir={whole}", *settings]) == 0
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, killed))
    assert one["global_step"] == two["global_step"] == 24
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    best, same = (load_file(folder / "student.safetensors") for folder in (whole, killed))
    assert all(torch.equal(value, same[name]) for name, value in best.items())
    assert rows(whole) == rows(killed)


def rows_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()
