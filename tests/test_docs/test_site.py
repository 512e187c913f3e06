"""The site builds without a warning, and its reference has every key."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from omegaconf import DictConfig, OmegaConf

for library in ("mkdocs", "material", "mkdocstrings", "griffe"):
    pytest.importorskip(library, reason="pip install 'distill[docs]'")

ROOT = Path(__file__).resolve().parents[2]
UNDOCUMENTED = ("experiment", "suite", "launcher")  # they set keys of others; their headers say what for


def load(name: str) -> ModuleType:
    """Imports a file of ``docs/``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagrams = load("diagrams")


@pytest.fixture(scope="module")
def hooks():
    return load("hooks")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = (tmp_path / "site/reference/python/distill.losses.html").read_text(encoding="utf-8")
    assert "HeatmapKL" in losses and ":class:" not in losses
    commands = (tmp_path / "site/reference/commands.html").read_text(encoding="utf-8")
    assert "learning rate" in commands and "&lt;run.dir&gt;/" in commands
    architecture = (tmp_path / "site/concepts/architecture.html").read_text(encoding="utf-8")
    assert architecture.count("<svg xmlns") >= 2 and "mermaid" not in architecture
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"""<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=["']?([^"'\s>]+)""", page.read_text())
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page


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


def test_the_page_on_the_architecture_draws_the_rooms_as_the_tests_and_the_charters_have_them():
    page = (ROOT / "docs/concepts/architecture.md").read_text(encoding="utf-8")
    tree = (ROOT / "tests/test_architecture.py").read_text(encoding="utf-8")
    rooms = re.findall(r'"(\w+)"', re.search(r"ROOMS = \((.*?)\)", tree, re.DOTALL)[1])
    drawn = next(line for line in page.splitlines() if "cli -->" in line)
    assert drawn.strip().split(" --> ") == rooms[::-1]
    assert diagrams.with_rooms(page) == page, "run: python docs/diagrams.py"


def test_every_module_that_a_diagram_names_exists():
    page = (ROOT / "docs/concepts/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"distill(?:\.\w+)+", "".join(diagrams.FENCE.findall(page)))
    assert len(named) > 5
    for name in named:
        assert (ROOT / name.replace(".", "/")).is_dir() or (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def test_a_flowchart_is_drawn_with_all_its_boxes_and_arrows():
    text = 'flowchart TB\n    a["first<br/>second line"] --> b{"asked?"} -- yes --> d\n    b -- no --> c["<c>"] --> d\n'
    graph = diagrams.parse(text)
    assert graph.labels == {"a": "first<br/>second line", "b": "asked?", "d": "d", "c": "<c>"}
    assert graph.edges == [("a", "b", ""), ("b", "d", "yes"), ("b", "c", "no"), ("c", "d", "")]
    rows, paths = diagrams.layers(graph)
    assert [[name for name in row if " " not in name] for row in rows] == [["a"], ["b"], ["c"], ["d"]]
    assert [len(path) for path in paths] == [2, 3, 2, 2]  # the arrow from b to d passes beside c
    drawn = ElementTree.fromstring(diagrams.svg(graph))
    names = [element.tag.rpartition("}")[2] for element in drawn]
    assert names.count("rect") == 4 and names.count("path") == 4
    assert [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")][:2] == ["yes", "no"]


@pytest.mark.parametrize("downwards", [True, False])
def test_boxes_of_a_flowchart_do_not_overlap_and_lie_in_the_drawing(downwards):
    names = ["a", "b", "c", "d", "e"]
    edges = [("a", "b", ""), ("a", "c", ""), ("a", "d", ""), ("d", "e", ""), ("a", "e", "")]
    graph = diagrams.Graph(downwards, {name: f"node {name}<br/>with two lines" for name in names}, edges)
    places, _, (width, height) = diagrams.placed(graph)
    for one in places.values():
        assert one.width / 2 <= one.x <= width - one.width / 2 and one.height / 2 <= one.y <= height - one.height / 2
        for other in places.values():
            apart_x = abs(one.x - other.x) >= (one.width + other.width) / 2
            apart_y = abs(one.y - other.y) >= (one.height + other.height) / 2
            assert one is other or apart_x or apart_y


@pytest.mark.parametrize(
    ("text", "message"),
    [("graph TD", "flowchart"), ("flowchart TB\na ==> b", "an arrow"), ("flowchart TB\n!", "a node")],
)
def test_a_flowchart_that_is_not_understood_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        diagrams.parse(text)


def test_a_circle_in_a_flowchart_is_an_error():
    with pytest.raises(ValueError, match="circles"):
        diagrams.layers(diagrams.parse("flowchart TB\na --> b --> a"))
