"""The report of a comparison as one HTML file that needs no other."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from distill.core.protocols import Benchmark
from distill.core.version import __version__
from distill.evaluation.browser import LETTERS, browsed_pairs
from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.figures import figures
from distill.evaluation.plots import colour
from distill.evaluation.report import convention, heading
from distill.evaluation.tables import tables
from distill.system.environment import describe

FILES = files("distill.evaluation") / "page_files"


def html_page(
    comparison: Comparison, benchmark: Benchmark, most: int = 300, curve: Path | None = None, settings: str = ""
) -> str:
    """Returns the report as one HTML page without any address outside it.

    Whatever comes from data, such as names of files, categories and matchers, is escaped; scripts that are not the page's own
    and requests are forbidden by its content security policy.

    Args:
        comparison: the figures.
        benchmark: the pairs that were compared on.
        most: how many of them can be looked at; fewer where the page would be larger than 20 MB.
        curve: a run's ``metrics.jsonl``, for the training curve.
        settings: of the run, as text.

    Raises:
        DataError: when ``curve`` cannot be read.
    """
    browsed = browsed_pairs(comparison, benchmark, most)
    names = list(comparison.evaluations)
    data = browsed | {
        "matchers": [{"name": name, "colour": colour(number)} for number, name in enumerate(names)],
        "reference": names.index(comparison.reference),
        "scored": comparison.scored,
        "alpha": HEADLINE,
        "levels": LETTERS,
        "truthName": getattr(benchmark, "truth_name", "truth"),
    }
    environment = Environment(
        loader=DictLoader({"report": _text("report.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report").render(
        heading=heading(comparison),
        convention=convention(comparison),
        tables=tables(comparison),
        plots=[found._replace(svg=Markup(found.svg)) for found in figures(comparison, curve)],
        notes=comparison.notes,
        data=data,
        n_shown=len(browsed["pairs"]),
        n_pairs=len(comparison.first.pairs),
        style=Markup(_text("report.css")),
        script=Markup(_text("report.js")),
        settings=settings,
        environment=describe(),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _text(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")
