"""Docstrings agree with the code: arguments have the names and the order of the signature, errors are named."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = re.compile(r"\b[Ss]ee\b|errors are those of")
"""How a docstring leaves its errors to that of another function."""


class Documented(NamedTuple):
    """A public function or class: where it is, its docstring, and the function that takes its arguments."""

    place: str
    docstring: str
    function: ast.FunctionDef


def documented(tree: ast.Module, path: str) -> Iterator[Documented]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            for method in methods:
                of = node if method.name == "__init__" else method
                if not of.name.startswith("_") or method.name == "__call__":
                    yield Documented(f"{path}: {node.name}.{method.name}", ast.get_docstring(of) or "", method)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield Documented(f"{path}: {node.name}", ast.get_docstring(node) or "", node)


def modules() -> list[Path]:
    return sorted(path for package in ("distill", "teacher", "student") for path in (ROOT / package).rglob("*.py"))


@pytest.fixture(scope="module")
def everything() -> list[Documented]:
    found: list[Documented] = []
    for path in modules():
        found += documented(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())
    assert len(found) > 500
    return found


def section(docstring: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
    return found[1] if found else ""


def parameters(function: ast.FunctionDef) -> list[str]:
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *([spec.vararg] if spec.vararg else []), *spec.kwonlyargs]
    return [arg.arg for arg in (*named, *([spec.kwarg] if spec.kwarg else [])) if arg.arg not in ("self", "cls")]


def raised(function: ast.FunctionDef) -> set[str]:
    """Returns the errors of the project that a function raises itself, those that it catches again included."""
    calls = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise))
    names = {ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)}
    return names & {"ConfigError", "DataError", "WeightsError", "LabelError", "ExportError"}


def test_the_arguments_in_a_docstring_are_those_of_the_signature(everything):
    wrong = []
    for place, docstring, function in everything:
        said = re.findall(r"^    (\w+):", section(docstring, "Args"), re.MULTILINE)
        if said and said != parameters(function):
            wrong.append(f"{place} documents {said} and takes {parameters(function)}")
    assert not wrong


def test_an_error_that_a_public_function_raises_is_in_its_docstring(everything):
    silent = [
        f"{place} raises {error}"
        for place, docstring, function in everything
        for error in raised(function)
        if error not in docstring and not ELSEWHERE.search(docstring)
    ]
    assert not silent


def test_no_public_function_is_left_without_a_docstring(everything):
    assert not [place for place, docstring, _ in everything if not docstring]


def test_a_docstring_without_an_argument_is_found():
    source = 'def f(a, b):\n    """Adds.\n\n    Args:\n        a: first.\n    """\n    raise DataError("no")\n'
    (found,) = documented(ast.parse(source), "here")
    assert parameters(found.function) == ["a", "b"] and raised(found.function) == {"DataError"}
    assert re.findall(r"^    (\w+):", section(found.docstring, "Args"), re.MULTILINE) == ["a"]
