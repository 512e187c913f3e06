"""Reports of a comparison as text: a table for the terminal, and Markdown."""

from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.tables import Table, number, tables
from distill.metrics.pck import ALPHAS, alpha_key


def summary(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns headers and rows of the table for the terminal; what was not measured is a dash."""
    key = f"within_{alpha_key(HEADLINE)}"
    first = [f"PCK @{alpha_key(a)}" for a in ALPHAS] if comparison.scored else ["confidence", "cycle @0.10"]
    rows = []
    for name, evaluation in comparison.evaluations.items():
        report = evaluation.report
        if comparison.scored:
            cells = [number(report["pck"]["image"][alpha_key(a)]) for a in ALPHAS]
        else:
            cells = [number(report["confidence"]["mean"], 2), number((report["cycle"] or {}).get("within_0.10"))]
        cells += [number(comparison.agreement.get(name, {}).get(key)), number(report["latency_ms"])]
        size = number(report.get("parameters"), 2, unit=1e6)
        rows.append([name, *(cell.text for cell in cells), size.text if size.value is None else f"{size.text} M"])
    return ["matcher", *first, "agrees @0.10", "ms/pair", "parameters"], rows


def markdown(comparison: Comparison) -> str:
    """Returns the report in Markdown."""
    parts = [f"# {_plain(heading(comparison))}", convention(comparison)]
    parts += [text for table in tables(comparison) for text in (f"## {_plain(table.title)}", _rows(table), table.note)]
    return "\n\n".join([*parts, *comparison.notes]) + "\n"


def heading(comparison: Comparison) -> str:
    """Returns what was compared on what."""
    report = comparison.first.report
    return f"{', '.join(comparison.evaluations)} on {report['data']} {report['split']}"


def convention(comparison: Comparison) -> str:
    """Returns how the figures are to be read."""
    report = comparison.first.report
    counted = f"{report['n_pairs']} pairs of {report['n_images']} images, {report['n_points']} points"
    if not comparison.scored:
        return (
            f"{counted}. Nothing is annotated: figures say how far matchers agree with {comparison.reference} and with themselves, not "
            "who is right."
        )
    frame = "in original target pixels" if report["convention"] == "canonical" else "by the convention of the paper"
    return (
        f"{counted}; PCK in percent, {frame}, distance <= alpha x tolerance base ({report['threshold']}), mean over pairs (image) and over "
        "points (point)."
    )


def _rows(table: Table) -> str:
    lines = [[_plain(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_plain(name.text), *(cell.text for cell in cells)] for name, *cells in table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Returns ``text`` with the characters escaped that Markdown or HTML give a meaning."""
    return "".join(
        f"\\{letter}" if letter in "\\`*[]|#" else "&lt;" if letter == "<" else letter
        for letter in " ".join(text.split())
    )
