"""The files and the table that tell of a comparison; fit and compare share them."""

from rich.console import Console
from rich.table import Table

from distill.cli.run_folder import RunFolder
from distill.core.protocols import Benchmark
from distill.evaluation.compare import Comparison
from distill.evaluation.pictures import stack
from distill.evaluation.report import COLUMNS, example_panels, html_page, markdown, table
from distill.system.environment import describe


def report(folder: RunFolder, comparison: Comparison, benchmark: Benchmark, panels: int = 6) -> None:
    """Writes ``metrics.json``, ``report.md``, ``report.html`` and ``matches.png``, and prints the table.

    Args:
        folder: of the run.
        comparison: the figures.
        benchmark: the pairs that were compared on.
        panels: how many pairs are drawn.
    """
    pictures = example_panels(comparison, benchmark, panels)
    folder.write_json("metrics.json", comparison.report() | {"environment": describe()})
    folder.write_text("report.md", markdown(comparison))
    folder.write_text("report.html", html_page(comparison, pictures))
    stack(pictures).save(folder / "matches.png")
    print_table(comparison)
    print(f"report: {folder / 'report.html'}")


def print_table(comparison: Comparison) -> None:
    """Prints the figures, per image only: the reports have the rest."""
    shown = [n for n, column in enumerate(COLUMNS) if "point" not in column]
    drawn = Table(title=f"{comparison.evaluations[comparison.reference].report['n_pairs']} test pairs, percent")
    for n in shown:
        drawn.add_column(COLUMNS[n].replace(" image", ""), justify="left" if n == 0 else "right")
    for row in table(comparison):
        drawn.add_row(*(row[n] for n in shown))
    Console(width=110).print(drawn)
