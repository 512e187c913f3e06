"""The site builds without a warning, and its reference has every key."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

for library in ("mkdocs", "material", "mkdocstrings", "griffe"):
    pytest.importorskip(library, reason="pip install 'distill[docs]'")

ROOT = Path(__file__).resolve().parents[2]
UNDOCUMENTED = ("experiment", "suite", "launcher")  # they set keys of others; their headers say what for


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = (tmp_path / "site/reference/python/distill.losses.html").read_text(encoding="utf-8")
    assert "HeatmapKL" in losses and ":class:" not in losses
    commands = (tmp_path / "site/reference/commands.html").read_text(encoding="utf-8")
    assert "learning rate" in commands and "&lt;run.dir&gt;/" in commands


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda file: str(file.relative_to(ROOT / "configs"))
)
def test_the_reference_has_every_key_of_a_file(hooks, file):
    def leaves(config: DictConfig, prefix: str = ""):
        for name in config:
            node = config._get_node(name)
            if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation() and len(node):
                yield from leaves(node, f"{prefix}{name}.")
            elif name not in ("_target_", "_partial_"):
                yield f"{prefix}{name}"

    config = OmegaConf.load(file)
    config.pop("defaults", None)
    named = {key.name for key in hooks.keys(file)}
    missing = [key for key in leaves(config) if not any(key == n or key.startswith(f"{n}.") for n in named)]
    assert not missing


@pytest.mark.parametrize(
    "file",
    [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if file.parent.name not in UNDOCUMENTED],
    ids=lambda file: str(file.relative_to(ROOT / "configs")),
)
def test_every_key_or_the_section_around_it_has_a_comment(hooks, file):
    found = hooks.keys(file)
    explained = {key.name for key in found if key.comment}
    bare = [
        key.name
        for key in found
        if not key.name.endswith("_target_")
        and not re.match(r"(distill|teacher|student|lightning|diffusers)\.\w", key.value)  # a section with a class
        and not any(key.name == name or key.name.startswith(f"{name}.") for name in explained)
    ]
    assert not bare, "the help and the reference are made from these comments"


def test_a_comment_in_a_yaml_file_is_the_meaning_of_its_key(hooks, tmp_path):
    folder = tmp_path / "group"
    folder.mkdir()
    (folder / "choice.yaml").write_text(
        "# A choice.\n"
        "_target_: some.Class\n"
        "size: 128  # px # of a side\n"
        'layers: ["a#b", c]  # to read\n'
        "nested:  # a section\n"
        "  lr: 1e-3  # peak\n"
        "several:\n"
        "  - one\n"
        "  - two\n"
        "bare: null\n"
    )
    found = {key.name: (key.value, key.comment) for key in hooks.keys(folder / "choice.yaml")}
    assert found == {
        "_target_": ("some.Class", ""),
        "size": ("128", "px # of a side"),
        "layers": ('["a#b", c]', "to read"),
        "nested": ("", "a section"),
        "nested.lr": ("1e-3", "peak"),
        "several": ("- one - two", ""),
        "bare": ("null", ""),
    }


def test_a_choice_has_the_keys_of_what_it_builds_on(hooks):
    found = {key.name: key for key in hooks.keys(ROOT / "configs/student/dinov2.yaml")}
    assert found["backbone"].value.startswith("vit_") and found["temperature"].comment
    assert {"resize", "root"} <= {key.name for key in hooks.keys(ROOT / "configs/data/cub.yaml")}


def test_the_architecture_page_draws_the_rooms_in_their_order():
    text = (ROOT / "docs/concepts/architecture.md").read_text(encoding="utf-8")
    tree = (ROOT / "tests/test_architecture.py").read_text(encoding="utf-8")
    rooms = re.findall(r'"(\w+)"', re.search(r"ROOMS = \((.*?)\)", tree, re.DOTALL)[1])
    drawn = next(line for line in text.splitlines() if "cli -->" in line)
    assert drawn.strip().split(" --> ") == rooms[::-1]
    assert all(f'{room}["{room} — ' in text for room in rooms)
