"""The files and the table of a comparison; fit and compare share them."""

from distill.cli.run_folder import RunFolder
from distill.core.protocols import Benchmark
from distill.evaluation.compare import Comparison
from distill.evaluation.pictures import stack
from distill.evaluation.report import COLUMNS, example_panels, html_page, markdown, table
from distill.system.environment import describe
from distill.system.tables import print_table


def report(folder: RunFolder, comparison: Comparison, benchmark: Benchmark, panels: int = 6) -> None:
    """Writes ``metrics.json``, ``report.md``, ``report.html``, ``matches.png`` and each matcher's answers, and prints the table.

    Args:
        folder: of the run.
        comparison: the figures.
        benchmark: the pairs that were compared on.
        panels: how many pairs are drawn.
    """
    pictures = example_panels(comparison, benchmark, panels)
    folder.write_json("metrics.json", comparison.report() | {"environment": describe()})
    for name, evaluation in comparison.evaluations.items():
        evaluation.answers.write(folder / "predictions" / f"{name}.npz")
    folder.write_text("report.md", markdown(comparison))
    folder.write_text("report.html", html_page(comparison, pictures))
    stack(pictures).save(folder / "matches.png")
    print_figures(comparison)
    for note in comparison.notes:
        print(f"note: {note}")
    print(f"report: {folder / 'report.html'}")


def print_figures(comparison: Comparison) -> None:
    """Prints the figures, per image only: the reports have the rest."""
    shown = [n for n, column in enumerate(COLUMNS) if "point" not in column]
    headers = [COLUMNS[n].replace(" image", "").replace("@", " @") for n in shown]
    n_pairs = comparison.evaluations[comparison.reference].report["n_pairs"]
    print_table(headers, [[row[n] for n in shown] for row in table(comparison)], f"{n_pairs} pairs, percent")


def announce(verb: str, what: str, device: str, where: object) -> None:
    """Prints the line that a command begins with: what is done, on which device, and where the result will be."""
    print(f"{verb}: {what}; on {device}; in {where}", flush=True)
