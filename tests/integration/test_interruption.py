"""Ctrl-C and SIGTERM end a training with the usual exit code, a word on how to go on, and a state to go on from."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from distill.__main__ import main

FIT = [
    *("student.backbone=test_resnet", "student.strides=[8,16]", "student.width=16", "data.size=64", "teacher=oracle"),
    *("train.n_pairs=16", "val.n_pairs=8", "test.n_pairs=0", "onnx=false", "pictures=0", "device=cpu"),
    *("trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=10", "batch_size=4"),
]


def take_interrupts() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def members(group: int) -> list[str]:
    """The living processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = (line.split(maxsplit=2) for line in listed)
    return [" ".join(row) for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "word", "processes"),
    [
        (signal.SIGINT, 130, "interrupted", 1),
        (signal.SIGTERM, 143, "terminated", 1),
        (signal.SIGTERM, 143, "terminated", 2),
    ],
)
def test_a_training_that_is_stopped_can_be_resumed(sent, code, word, processes, tmp_path, root):
    epochs = 20 if processes == 1 else 12
    arguments = ["fit", f"run.dir={tmp_path}/r", *FIT, f"trainer.devices={processes}", f"trainer.max_epochs={epochs}"]
    arguments += ["num_workers=2"] if sent is signal.SIGTERM and processes == 1 else []
    command = [sys.executable, "-m", "distill", *arguments]
    process = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_interrupts,
        start_new_session=True,
    )
    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.1)
    if sent is signal.SIGTERM and processes == 1:
        os.killpg(process.pid, sent)  # as batch systems do, to the loading processes as well
    else:
        process.send_signal(sent)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code and f"{word}, go on with run.resume=true\n" in error
    assert error.count(word) == 1 and "Traceback" not in error
    assert members(process.pid) == []
    assert not (tmp_path / "r" / "student.safetensors").exists()
    epoch = torch.load(last, weights_only=True)["epoch"]
    if processes == 1:  # a process of its own would import everything once more
        assert main([*arguments, "run.resume=true"]) == 0
    else:
        done = subprocess.run([*command, "run.resume=true"], cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "student.safetensors").is_file() and epoch < epochs - 1
    assert torch.load(last, weights_only=True)["epoch"] == epochs - 1
