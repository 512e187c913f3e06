"""The table of a matcher's settings: what each combination of them scores on the same pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.system.tables import markdown_table

FIGURES = ("PCK@0.05", "PCK@0.10", "low@0.10", "high@0.10", "swaps@0.10")
NOTE = "PCK per image in percent, all rows on the same pairs. Low and high: 95 % interval of PCK@0.10 over images."


def summary(settings: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each combination: its "settings", and the figures by the names in :data:`FIGURES`.

    Args:
        settings: of the rows, the same names in each; None where one has no effect.
        reports: the ``metrics.json`` of each evaluation.
    """
    rows: list[dict[str, Any]] = []
    for chosen, report in zip(settings, reports, strict=True):
        pck, (low, high) = report["pck"]["image"], report["interval@0.10"]
        values = (pck["0.05"], pck["0.10"], max(low, 0.0), min(high, 100.0), report["pck_dagger"]["swap"])
        rows.append({"settings": dict(chosen)} | dict(zip(FIGURES, values, strict=True)))
    return rows


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the headers: the settings, then the figures, each in words that may stand below each other."""
    return [*rows[0]["settings"], *(name.replace("@", " @") for name in FIGURES)]


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the rows of :func:`summary` as text, a cell for each of :func:`columns`."""
    return [
        [_text(value) for value in row["settings"].values()] + [f"{row[name]:.1f}" for name in FIGURES] for row in rows
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of :func:`summary` as a table in Markdown."""
    return markdown_table([*rows[0]["settings"], *FIGURES], cells(rows), NOTE)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
