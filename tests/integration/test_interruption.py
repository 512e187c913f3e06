"""A training that is killed, told to end or interrupted goes on as if it had not been, and says how."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.__main__ import main

SMALL = [
    *("teacher=oracle", "student.width=16", "test.n_pairs=0", "onnx=false", "pictures=0", "device=cpu"),
    *("trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "batch_size=4"),
]
FIT = [
    *SMALL,
    *("student.backbone=test_convnext", "student.strides=[8,16]", "data.size=32", "train.n_pairs=24", "val.n_pairs=11"),
    *("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "self_distillation.start_epoch=1"),
]
"""Six steps an epoch. The labels of the second epoch are already the student's own, of its averaged weights."""
ON_TWO = [
    *SMALL,
    *("student.backbone=test_resnet", "student.strides=[8,16]", "data.size=64", "train.n_pairs=16", "val.n_pairs=8"),
    *("trainer.max_epochs=12", "trainer.check_val_every_n_epoch=10", "trainer.devices=2"),
]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "distill", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_interrupts,
        start_new_session=True,
    )


def take_interrupts() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def members(group: int) -> list[str]:
    """The living processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = (line.split(maxsplit=2) for line in listed)
    return [" ".join(row) for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def rows(folder: Path) -> list[dict]:
    """What a training logged so far."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A training that nothing stopped; one thread computes, as in the processes that are started here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert main(["fit", f"run.dir={folder}", *FIT]) == 0
    yield folder
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "word", "extra"),
    [
        (signal.SIGKILL, -9, None, []),
        (signal.SIGINT, 130, "interrupted", []),
        (signal.SIGTERM, 143, "terminated", ["num_workers=2"]),
    ],
)
def test_a_training_that_is_stopped_resumes_bit_for_bit(sent, code, word, extra, whole, tmp_path):
    folder, arguments = tmp_path / "r", ["fit", f"run.dir={tmp_path}/r", *FIT, *extra]
    process = start(arguments)
    while len(rows(folder)) <= 8 and process.poll() is None:  # the second epoch has begun
        time.sleep(0.005)
    if extra:
        os.killpg(process.pid, sent)  # as batch systems do, to the loading processes as well
    else:
        process.send_signal(sent)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in error
    if word is not None:
        assert error.count(word) == 1 and f"{word}, go on with run.resume=true\n" in error
    assert members(process.pid) == [] and not (folder / "student.safetensors").exists()
    assert main([*arguments, "run.resume=true"]) == 0
    expected, found = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, folder))
    assert found["global_step"] == expected["global_step"] == 24
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in expected["state_dict"].items())
    kept, same = (load_file(run / "student.safetensors") for run in (whole, folder))
    assert all(torch.equal(value, same[name]) for name, value in kept.items())
    assert rows(whole) == rows(folder)


@pytest.mark.slow
def test_a_training_of_two_processes_that_is_stopped_can_be_resumed(tmp_path):
    arguments = ["fit", f"run.dir={tmp_path}/r", *ON_TWO]
    process, last = start(arguments), tmp_path / "r" / "checkpoints" / "last.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in error
    assert error.count("terminated") == 1 and "terminated, go on with run.resume=true\n" in error
    assert members(process.pid) == [] and not (tmp_path / "r" / "student.safetensors").exists()
    epoch = torch.load(last, weights_only=True)["epoch"]
    resumed = start([*arguments, "run.resume=true"])
    assert resumed.communicate(timeout=300) and resumed.returncode == 0
    assert (tmp_path / "r" / "student.safetensors").is_file() and epoch < 11
    assert torch.load(last, weights_only=True)["epoch"] == 11
