"""What holds for the code as a whole: style, types, and who may import whom."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "core",
    "system",
    "data",
    "transforms",
    "metrics",
    "matchers",
    "labels",
    "evaluation",
    "losses",
    "training",
    "export",
    "bench",
    "cli",
)
"""The rooms of ``distill``, from the bottom up: a room imports from itself and from those below it."""
HEAVY = {
    "diffusers": ("teacher",),
    "transformers": ("teacher",),
    "timm": ("student", "teacher/pretrain/optimizer.py", "distill/training/optimiser.py"),  # backbones; Muon
    "lightning": ("distill/training", "distill/data/datamodule.py", "distill/cli", "teacher/pretrain"),
    "hydra": ("distill/cli",),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("distill", "teacher", "student"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_types_hold():
    if shutil.which("mypy") is None and not (Path(sys.executable).parent / "mypy").exists():
        pytest.skip("mypy is not installed")
    command = [sys.executable, "-m", "mypy", "distill", "teacher", "student"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("path", "tree"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_in_one_direction(path, tree):
    package = path.split("/")[0]
    for name in imports(tree):
        top, _, rest = name.partition(".")
        if package == "distill":
            assert top not in ("teacher", "student"), f"{path} imports {name}"
        elif top == "distill":
            assert rest.split(".")[0] == "core", f"{path} imports {name}, which is no part of the core"
        if {package, top} == {"teacher", "student"}:
            pytest.fail(f"{path} imports {name}")
        if top in HEAVY:
            assert path.startswith(HEAVY[top]), f"{path} imports {top}"


def test_rooms_import_only_rooms_below_them():
    upward = []
    for path, tree in modules():
        parts = path.split("/")
        if parts[0] != "distill" or len(parts) == 2:
            continue
        assert parts[1] in ROOMS, f"{path} lies in no room"
        for name in imports(tree):
            room = name.split(".")[1:2]
            if name.startswith("distill.") and ROOMS.index(room[0]) > ROOMS.index(parts[1]):
                upward.append(f"{path} imports {name}")
    assert not upward


def test_every_room_says_what_belongs_in_it():
    for room in ROOMS:
        tree = ast.parse((ROOT / "distill" / room / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"distill/{room}/__init__.py has no charter"


@pytest.mark.parametrize(("path", "tree"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_public_functions_are_annotated(path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert node.returns is not None, f"{path}: {node.name} does not say what it returns"
            arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
            bare = [a.arg for a in arguments if a.annotation is None]
            assert not bare, f"{path}: {node.name} does not say what {bare} are"


def test_nothing_is_pickled():
    for path, tree in modules():
        assert "pickle" not in set(imports(tree)), path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), path


def test_tests_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))
