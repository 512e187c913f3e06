"""What the documentation shows runs: Python blocks, and the complete examples of the how-to pages."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.labels.store import LabelStore

MINIATURE = {
    "fit": [
        *("trainer=smoke", "teacher=oracle", "student.backbone=test_resnet", "student.strides=[8,16]", "data.size=64"),
        *("train.n_pairs=4", "val.n_pairs=2", "test.n_pairs=2", "batch_size=2", "pictures=0", "onnx=false"),
    ],
    "label": ["data.size=64", "train.n_pairs=2", "val.n_pairs=2", "test.n_pairs=2"],
    "evaluate": ["data.n_pairs=4", "data.size=64"],
    "worst": ["data.n_pairs=8", "data.size=64"],
}
"""What makes the commands of the how-to pages small, where they do not say otherwise."""
FURTHER = {
    "student": {"fit": ["onnx=true"]},
    "dataset": {"fit": ["teacher.model.backbone=test_resnet", "teacher.model.strides=[8,16]"]},
}
PHOTOGRAPHS = {"dataset": "photographs", "propagate": "photos/cups"}
"""Folders of the three photographs that pages speak of."""
DROPPED = {"student": ("student.",)}
"""Settings that a page's own part does not have."""


def test_python_blocks_run_in_their_order(code, run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    namespace: dict = {"__name__": "a_page"}
    for block in code:
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), namespace)


def smaller(page: str, words: list[str]) -> list[str]:
    """Returns the arguments of a command with what makes it small."""
    verb, *given = words
    named = {word.partition("=")[0] for word in given}
    added = [
        setting
        for setting in MINIATURE.get(verb, [])
        if setting.partition("=")[0] not in named and not setting.startswith(DROPPED.get(page, ("\0",)))
    ]
    for setting in FURTHER.get(page, {}).get(verb, []):
        added = [other for other in added if other.partition("=")[0] != setting.partition("=")[0]] + [setting]
    return [verb, *given, *added]


@pytest.mark.slow
def test_examples_of_how_to_pages_run_from_a_folder_of_their_own(how_to, example, own_folder, capsys):
    if how_to.stem in PHOTOGRAPHS:
        for name, size in (("a", (48, 40)), ("b", (60, 44)), ("c", (40, 40))):
            noise = np.random.default_rng(len(name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
            file = own_folder / PHOTOGRAPHS[how_to.stem] / f"{name}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(file)
    assert example, "a how-to page without a command"
    for words in example:
        assert main(smaller(how_to.stem, words)) == 0, capsys.readouterr().err
    globals()[f"check_{how_to.stem}"](own_folder, capsys.readouterr().out)


def test_files_of_how_to_pages_are_in_the_style_of_the_project(how_to, example, own_folder, root):
    options = [f"--config={root / 'pyproject.toml'}", "--ignore=I001"]  # which packages are one's own differs
    command = [sys.executable, "-m", "ruff", "check", *options, "."]  # pages without Python pass
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_an_example_runs_in_a_shell_with_python_path_and_config_dir(metric_script, own_folder, root):
    small = shlex.join(MINIATURE["evaluate"])
    script = metric_script.replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{root}").rstrip() + f" {small}\n"
    python = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
    done = subprocess.run(["bash", "-euc", python + script], cwd=own_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean_error" in done.stdout
    check_metric(own_folder, done.stdout)


def check_loss(folder: Path, shown: str) -> None:
    logged = [json.loads(line) for line in (folder / "runs/narrow/metrics.jsonl").read_text().splitlines()]
    assert any(row.get("train/entropy", 0) > 0 for row in logged)
    assert any(row.get("val/entropy", 0) > 0 for row in logged)


def check_metric(folder: Path, shown: str) -> None:
    assert json.loads((folder / "runs/error/metrics.json").read_text())["metrics"]["mean_error"]["px"] > 0


def check_verb(folder: Path, shown: str) -> None:
    assert len(json.loads((folder / "runs/worst/worst.json").read_text())["worst"]) == 5
    assert "List the pairs on which a matcher does worst." in shown


def check_teacher(folder: Path, shown: str) -> None:
    assert len(LabelStore(folder / "labels/patches")) > 0
    report = json.loads((folder / "runs/patches/metrics.json").read_text())
    assert [row["matcher"] for row in report["matchers"]][:2] == ["teacher", "student"]


def check_student(folder: Path, shown: str) -> None:
    assert (folder / "runs/tiny/student.onnx").is_file()
    assert json.loads((folder / "runs/tiny-test/metrics.json").read_text())["n_pairs"] == 4


def check_dataset(folder: Path, shown: str) -> None:
    report = json.loads((folder / "runs/json_pairs/metrics.json").read_text())
    assert all((row["data"], row["n_pairs"]) == ("json_pairs", 1) for row in report["matchers"])
    drawn = json.loads((folder / "runs/discs/metrics.json").read_text())
    assert all((row["data"], row["n_pairs"]) == ("discs", 2) for row in drawn["matchers"])
    assert (folder / "runs/discs-data/contact_sheet.png").is_file() and len(
        LabelStore(folder / "runs/discs/labels")
    ) > 0


def check_propagate(folder: Path, shown: str) -> None:
    written = json.loads((folder / "coco.json").read_text())
    by_name = {image["file_name"]: image["id"] for image in written["images"]}
    keypoints = {a["image_id"]: a["keypoints"] for a in written["annotations"]}
    parts = written["categories"][0]["keypoints"]
    assert keypoints[by_name["cups/b.jpg"]][3 * parts.index("rim") :][:3] == [24.5, 14.5, 2]
    assert (folder / "runs/again/review.html").is_file()
