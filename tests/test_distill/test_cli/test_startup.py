"""What the command line costs before a verb runs, and how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill.__main__ import VERBS

HEAVY = ("torch", "lightning", "diffusers", "transformers", "timm", "numpy")


def imported(arguments: list[str]) -> set[str]:
    script = (
        "import sys\nfrom distill.__main__ import main\n"
        f"assert main({arguments!r}) == 0\n"
        f"print('|'.join(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(filter(None, done.stderr.strip().split("|")))


@pytest.mark.parametrize(
    "arguments", [[], ["--version"], ["fit", "--cfg", "job"], *([verb, "--help"] for verb in VERBS)]
)
def test_what_only_prints_imports_no_torch(arguments):
    assert not imported(arguments)


def test_the_package_itself_imports_no_torch():
    script = "import sys, distill; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    script = "import distill; print(distill.Matches.__name__, distill.Matcher.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "Matches Matcher\n"


def test_a_reader_that_goes_away_leaves_no_traceback():
    command = f"{sys.executable} -m distill fit --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("Train a student") and done.stderr == "" and done.returncode in (0, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", ["--help", "fit --help", "fit --cfg job"])
def test_output_to_a_full_disk_is_one_line(arguments):
    command = f"{sys.executable} -m distill {arguments} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: Expected room to write the output but got: No space left on device; make room.\n"
    )
