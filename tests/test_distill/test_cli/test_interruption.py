"""Processes of one command end together, and say why; without torch, in a moment."""

import subprocess
import sys

import pytest
import torch.distributed

from distill import __main__ as command_line

PROGRAM = """
import subprocess, sys, time
from distill.cli import interruption as i

i.SECONDS_TO_END, i.CHECKED_EVERY = 1.0, 0.05
try:
    with i.terminable():
        i.end_with_started([subprocess.Popen([sys.executable, "-c", code]) for code in sys.argv[2:]])
        exec(sys.argv[1])
    print("went on", i.failure_of_started())
except i.Terminated:
    print("ended", i.failure_of_started(), i.other_ended(5))
"""
WORKS = "import time; time.sleep(0.5)"
HEARS_NOTHING = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(30)"


@pytest.mark.parametrize(
    ("work", "started", "shown", "code"),
    [
        (
            "time.sleep(30)",
            [WORKS, "import sys; sys.exit(2)"],
            "ended process 2 of 3 failed with exit code 2, see above True",
            0,
        ),
        (
            "time.sleep(30)",
            ["import os; os.kill(os.getpid(), 9)"],
            "ended process 1 of 2 was ended by SIGKILL, as the system does when memory runs out True",
            0,
        ),
        ("time.sleep(30)", ["import sys; sys.exit(143)"], "ended None True", 0),
        ("time.sleep(0.5)", [""], "went on None", 0),
        (HEARS_NOTHING, ["import sys; sys.exit(1)"], "", -9),
    ],
    ids=["failed", "killed", "told to end", "all is well", "hears no SIGTERM"],
)
def test_a_process_ends_when_one_that_it_started_fails_and_says_which(work, started, shown, code):
    command = [sys.executable, "-c", PROGRAM, work, *started]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.stdout.strip(), done.returncode) == (shown, code), done.stderr


LOADING = """
import os, signal, subprocess, sys, time
from distill.cli import interruption as i

def torchs(*_):
    raise RuntimeError("a loading process is killed by signal: Terminated")

try:
    with i.terminable():
        loading = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
        signal.signal(signal.SIGCHLD, torchs)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
except i.Terminated:
    loading.terminate()
    print("ended", loading.wait())
"""


def test_the_end_of_loading_processes_is_no_error_of_a_process_that_was_told_to_end():
    """Torch's error came while Python ended, with a traceback behind the line that says how to go on."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=20)
    assert (done.stdout.strip(), done.returncode) == ("ended -15", 0), done.stderr


def raising_in(file: str, error: type[Exception] = RuntimeError):
    """Returns what stands for a verb and raises an error of a lost connection in ``file``."""
    code = compile("raise error('Connection closed by peer')", file, "exec")
    return lambda arguments: exec(code, {"error": error})


def test_a_lost_connection_is_told_in_one_line_and_any_other_error_in_full(monkeypatch, capsys):
    for lost in (
        raising_in("/env/torch/distributed/distributed_c10d.py"),
        raising_in("/env/torch/autograd/graph.py", torch.distributed.DistBackendError),
    ):
        monkeypatch.setattr(command_line, "_dispatch", lost)
        assert command_line.main(["label"]) == 2
        assert capsys.readouterr().err == (
            "error: Expected all processes of the command to go on but one is lost (Connection closed by peer), see its own "
            "message, the labels made so far are kept; the same command goes on\n"
        )
    monkeypatch.setattr(command_line, "_dispatch", raising_in("/home/distributed/teacher.py"))
    with pytest.raises(RuntimeError, match="Connection closed"):
        command_line.main(["label"])
