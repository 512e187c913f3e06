"""The files and the table of a comparison; fit and compare share them."""

from pathlib import Path

from distill.cli.run_folder import RunFolder
from distill.core.protocols import Benchmark
from distill.evaluation.compare import Comparison
from distill.evaluation.page import html_page
from distill.evaluation.panels import example_panels
from distill.evaluation.pictures import stack
from distill.evaluation.report import markdown, summary
from distill.system.environment import describe
from distill.system.tables import print_table


def report(
    folder: RunFolder,
    comparison: Comparison,
    benchmark: Benchmark,
    panels: int = 6,
    browsed: int = 100,
    curve: Path | None = None,
    heatmaps: bool = True,
) -> None:
    """Writes ``metrics.json``, ``report.md``, ``report.html``, ``matches.png`` and each matcher's answers, and prints the table.

    Args:
        folder: of the run.
        comparison: the figures.
        benchmark: the pairs that were compared on.
        panels: how many pairs are drawn in ``matches.png``.
        browsed: how many pairs can be looked at in ``report.html``, at most.
        curve: ``metrics.jsonl`` of a fit; without it that of the folder, where there is one.
        heatmaps: whether small ones are kept with the answers, so that the report can be made again without a matcher.
    """
    folder.write_json("metrics.json", comparison.report() | {"environment": describe()})
    for name, evaluation in comparison.evaluations.items():
        evaluation.answers.write(folder / "predictions" / f"{name}.npz", heatmaps)
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


def print_figures(comparison: Comparison) -> None:
    """Prints the figures, per image only: the reports have the rest."""
    n_pairs = comparison.first.report["n_pairs"]
    print_table(
        *summary(comparison), f"{n_pairs} pairs, percent" if comparison.scored else f"{n_pairs} pairs, not annotated"
    )


def announce(verb: str, what: str, device: str, where: object) -> None:
    """Prints the line that a command begins with: what is done, on which device, and where the result will be."""
    print(f"{verb}: {what}; on {device}; in {where}", flush=True)
