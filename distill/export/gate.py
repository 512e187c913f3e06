"""The gate of an exported file: its PCK may be at most half a point below the student's."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from distill.core.errors import ExportError
from distill.core.protocols import Benchmark, Matcher
from distill.evaluation.evaluate import evaluate

LARGEST_LOSS = 0.5  # points of PCK
ALPHA = "0.10"


class Gate(NamedTuple):
    """PCK at alpha 0.10, averaged per image, in percent, of a student and of its file on the same pairs.

    Attributes:
        torch: of the student.
        file: of the file.
        n_pairs: how many pairs were asked.
        convention: of the benchmark, for people.
    """

    torch: float
    file: float
    n_pairs: int
    convention: str

    @property
    def loss(self) -> float:
        """PCK of the student minus that of the file, in percentage points; negative where the file is better."""
        return self.torch - self.file

    def figures(self) -> dict[str, Any]:
        """Returns both figures, the number of pairs and the convention, as the file's metadata holds them."""
        return {
            "pck@0.10": {"torch": self.torch, "file": self.file, "pairs": self.n_pairs, "convention": self.convention}
        }


def measure(student: nn.Module, matcher: Matcher, pairs: Benchmark) -> Gate:
    """Evaluates ``student``, a torch module, and ``matcher``, its exported file, on the same ``pairs``."""
    return measured_against(student, pairs)(matcher)


def measured_against(student: nn.Module, pairs: Benchmark) -> Callable[[Matcher], Gate]:
    """Returns what evaluates one file of ``student`` after the other on ``pairs``; the student itself is evaluated once."""

    def asked(matcher: nn.Module | Matcher) -> tuple[float, int]:
        report = evaluate(matcher, pairs, "student", progress=False).report
        return float(report["pck"]["image"][ALPHA]), report["n_pairs"]

    before = cache(lambda: asked(student))  # when the first file is there, which may fail

    def measured(matcher: Matcher) -> Gate:
        torch, n_pairs = before()
        return Gate(torch, asked(matcher)[0], n_pairs, f"per image, {pairs.threshold}, {pairs.name} {pairs.split}")

    return measured


def check(gate: Gate, precision: str) -> None:
    """Raises an :class:`ExportError` when the file loses more than half a point."""
    if gate.loss > LARGEST_LOSS:
        raise ExportError(
            f"Expected {precision} to keep PCK@{ALPHA} within {LARGEST_LOSS} points but it falls from {gate.torch:.1f} to "
            f"{gate.file:.1f} on {gate.n_pairs} pairs ({gate.convention}); export precision=fp32, or add insist=true."
        )


def with_figures(metadata: Mapping[str, str], gate: Gate) -> dict[str, str]:
    """Returns a file's metadata with the gate's figures added."""
    return {**metadata, "figures": json.dumps({**json.loads(metadata["figures"]), **gate.figures()})}
