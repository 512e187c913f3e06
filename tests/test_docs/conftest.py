"""The pages of the documentation, taken apart: code blocks, command lines, names in the text."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "checkpoints").rglob("*.md")),
)
FENCE = re.compile(r"^```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced code block.

    Attributes:
        page: its file.
        line: of the opening fence.
        language: such as "python".
        title: the file that it shows, or "".
        text: what is in it.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["rest"])
        line = text[: match.start()].count("\n") + 1
        found.append(Block(page, line, match["language"], title[1] if title else "", match["text"]))
    return found


def prose(page: Path) -> str:
    """Returns a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of every shell command on a page, in blocks and in the text; ``<something>`` is a word."""
    texts = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language == "sh"]
    texts += re.findall(r"`(python -m distill [^`]+)`", prose(page))
    for line in "\n".join(texts).splitlines():
        for command in re.sub(r"<[^<>\s]+>", "placeholder", line).split("&&"):
            words = shlex.split(command, comments=True)
            if words:
                yield words


def distill_commands(page: Path) -> list[list[str]]:
    """Returns what follows ``python -m distill`` in each command of a page that begins so."""
    found = []
    for words in commands(page):
        if Path(words[0]).name == "python" and words[1:3] == ["-m", "distill"]:
            found.append(words[3:])
        elif words[0] == "distill":
            found.append(words[1:])
    return [words for words in found if words and words[0] != "placeholder"]


def write_files(page: Path, folder: Path) -> None:
    """Writes the files that a page shows, those with a title, into ``folder``."""
    for block in blocks(page):
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pages = {
        "page": list(PAGES),
        "python_page": [p for p in PAGES if python_blocks(p)],
        "how_to": sorted((ROOT / "docs/how-to").glob("*.md")),
    }
    for name, chosen in pages.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, chosen, ids=[str(page.relative_to(ROOT)) for page in chosen])


def python_blocks(page: Path) -> list[Block]:
    """Returns the Python on a page that is no file of its own."""
    return [block for block in blocks(page) if block.language == "python" and not block.title]


@pytest.fixture
def code(python_page: Path) -> list[Block]:
    return python_blocks(python_page)


@pytest.fixture
def text(page: Path) -> str:
    return prose(page)


@pytest.fixture
def shell(page: Path) -> list[list[str]]:
    return list(commands(page))


@pytest.fixture
def verbs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of ``python -m distill`` on a page, to be read in a folder that holds the page's files."""
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    return distill_commands(page)


@pytest.fixture
def example(how_to: Path, own_folder: Path) -> list[list[str]]:
    """The commands of a how-to page, whose files lie in ``own_folder``."""
    write_files(how_to, own_folder)
    return distill_commands(how_to)


@pytest.fixture
def metric_script(own_folder: Path) -> str:
    """The shell block of the page on metrics, whose files lie in ``own_folder``."""
    page = ROOT / "docs/how-to/metric.md"
    write_files(page, own_folder)
    (script,) = [block.text for block in blocks(page) if block.language == "sh"]
    return script


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder outside the repository, which Python finds modules in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photographs, and a miniature student where ``fit`` leaves one."""
    from distill.export.onnx import export_student
    from distill.export.split import export_split
    from distill.export.student_file import save_student
    from student import StudentMatcher

    folder = tmp_path_factory.mktemp("docs")
    settings = {"backbone": "test_resnet", "strides": [8, 16], "width": 16}
    torch.manual_seed(0)
    student = StudentMatcher(**settings)
    save_student(
        student, {"_target_": "student.StudentMatcher", **settings, "size": 32}, folder / "runs/fit/student.safetensors"
    )
    export_student(student, folder / "runs/fit/student.onnx", 32)
    export_split(student, folder / "runs/fit", 32)
    for name, size in (("a.jpg", (300, 260)), ("b.jpg", (200, 320))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)
    return folder
