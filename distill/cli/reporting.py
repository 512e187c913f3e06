"""The files and the table of a comparison; fit and compare share them."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from distill.cli.run_folder import RunFolder
from distill.core.protocols import Benchmark
from distill.evaluation.compare import Comparison
from distill.evaluation.evaluate import Evaluation
from distill.evaluation.page import html_page
from distill.evaluation.panels import example_panels
from distill.evaluation.pictures import stack
from distill.evaluation.report import markdown, summary
from distill.system.environment import describe
from distill.system.tables import print_table

SHORTEST_PATH = 20
"""Columns that a path keeps in the line that a command begins with."""


def answers_to(folder: RunFolder, heatmaps: bool = True) -> Callable[[str, Evaluation], None]:
    """Returns what writes the answers of a matcher, by its name, to ``predictions/`` in the folder of a run.

    Args:
        folder: of the run.
        heatmaps: whether small ones are kept with the answers, so that the report can be made again without a matcher.
    """
    return lambda name, evaluation: evaluation.answers.write(folder / "predictions" / f"{name}.npz", heatmaps)


def report(
    folder: RunFolder,
    comparison: Comparison,
    benchmark: Benchmark,
    panels: int = 6,
    browsed: int = 100,
    curve: Path | None = None,
) -> None:
    """Writes ``metrics.json``, ``report.md``, ``report.html`` and ``matches.png``, and prints the table.

    Args:
        folder: of the run.
        comparison: the figures.
        benchmark: the pairs that were compared on.
        panels: how many pairs are drawn in ``matches.png``.
        browsed: how many pairs can be looked at in ``report.html``, at most.
        curve: ``metrics.jsonl`` of a fit; without it that of the folder, where there is one.
    """
    folder.write_json("metrics.json", comparison.report() | {"environment": describe()})
    folder.write_text("report.md", markdown(comparison))
    settings = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else ""
    own = folder / "metrics.jsonl"
    page = html_page(comparison, benchmark, browsed, curve or (own if own.is_file() else None), settings)
    folder.write_text("report.html", page)
    stack(example_panels(comparison, benchmark, panels)).save(folder / "matches.png")
    print_figures(comparison)
    for note in comparison.notes:
        print(f"note: {note}")
    print(f"report: {folder / 'report.html'}")


def images_note(name: str, matcher: Any, data: Mapping[str, Any]) -> str | None:
    """Returns a note where a matcher is given other images than those it was trained on; None where it is not, or none are known.

    Args:
        name: of the matcher.
        matcher: a student has ``size``, px, and ``resize``.
        data: the configuration of a data set.
    """
    if getattr(matcher, "resize", None) is None:  # no student, or of a file that does not say
        return None
    trained = {key: getattr(matcher, key) for key in ("size", "resize")}
    wanted = " ".join(f"data.{key}={value}" for key, value in trained.items() if data.get(key, value) != value)
    return f"{name} was trained on other images than it is given here; {wanted} gives it those" if wanted else None


def print_figures(comparison: Comparison) -> None:
    """Prints the figures, per image only: the reports have the rest."""
    n_pairs = comparison.first.report["n_pairs"]
    print_table(
        *summary(comparison), f"{n_pairs} pairs, percent" if comparison.scored else f"{n_pairs} pairs, not annotated"
    )


def announce(verb: str, what: str, device: str, where: object) -> None:
    """Prints the line that a command begins with: what is done, on which device, and where the result will be.

    In a terminal a long path is shortened in the middle, so that the line is one; reports name their files in full at the end.
    """
    line, path = f"{verb}: {what}; on {device}; in ", str(where)
    if sys.stdout.isatty():
        path = shortened(path, max(SHORTEST_PATH, shutil.get_terminal_size().columns - cell_len(line)))
    print(line + path, flush=True)


def shortened(text: str, width: int) -> str:
    """Returns ``text`` in at most ``width`` columns, with an ellipsis for its middle where it is longer."""
    if cell_len(text) <= width:
        return text
    head, kept = set_cell_size(text, (width - 1) // 2).rstrip(), width - 1 - (width - 1) // 2
    tail = set_cell_size(text[::-1], kept).rstrip()[::-1]
    return f"{head}…{tail}"
