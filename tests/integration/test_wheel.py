"""The wheel carries all that a user needs, and works from another directory."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_it_carries_configurations_and_checkpoints(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "checkpoints"):
        for file in (path for path in (root / folder).rglob("*") if path.is_file()):
            assert f"distill/{file.relative_to(root).as_posix()}" in names
    assert {f"{package}/py.typed" for package in ("distill", "teacher", "student")} <= names
    assert not any(name.startswith(("tests/", "runs/", "docs/")) for name in names)


@pytest.mark.slow
def test_an_empty_environment_fits_a_student_from_another_directory(wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # which would come before what is installed
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # The dependencies of the running environment, without the network; not the project, which is not among them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    where = "import distill; print(distill.__file__)"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tmp_path))
    command = [
        tmp_path / "env" / "bin" / "distill",
        "fit",
        "trainer=smoke",
        "teacher=oracle",
        "student.backbone=test_resnet",
        "student.consensus=0",
    ]
    sizes = ["train.n_pairs=16", "val.n_pairs=8", "test.n_pairs=8", "data.size=64", "student.strides=[8,16]"]
    done = subprocess.run([*command, *sizes], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = {path.name for path in (tmp_path / "runs" / "fit").iterdir()}
    assert made >= {
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "report.html",
        "student.onnx",
        "student.safetensors",
    }
