"""The table of an ablation: the gain of each change, with standard deviations over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distill.system.tables import markdown_table

COLUMNS = (
    ("variant", "variant"),
    ("seeds", "seeds"),
    ("PCK@0.10", "pck@0.10"),
    ("low", "low@0.10"),
    ("high", "high@0.10"),
    ("spread", "spread@0.10"),
    ("PCK@0.05", "pck@0.05"),
    ("spread", "spread@0.05"),
    ("swaps@0.10", "swap@0.10"),
    ("gain@0.10", "gain@0.10"),
    ("teacher@0.10", "teacher@0.10"),
    ("its low", "teacher_low@0.10"),
    ("its high", "teacher_high@0.10"),
    ("teacher@0.05", "teacher@0.05"),
    ("its swaps", "teacher_swap@0.10"),
    ("its AUROC", "teacher_auroc@0.10"),
)
HEADER = tuple(name for name, _ in COLUMNS)
NOTE = (
    "Student and teacher: PCK per image in percent. Low, high: 95 % interval over pairs, mean of seeds. "
    "Spread: standard deviation over seeds. Gain: over the first row. AUROC: of the teacher's confidence, in percent."
)


def summary(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Sums up the comparisons of several trainings of several variants.

    Args:
        reports: for each variant the ``metrics.json`` of its seeds; the first variant is what the others are held
            against.

    Returns:
        A row for each variant: "variant", "seeds" (how many), the student's "pck@0.10" and "pck@0.05" per image, "low@0.10" and
        "high@0.10" (the 95 % interval over pairs, its bounds' means over seeds), the standard deviations over seeds "spread@0.10"
        and "spread@0.05" (None for one seed), its "swap@0.10" rate, the teacher's "teacher@0.10", "teacher_low@0.10",
        "teacher_high@0.10", "teacher@0.05", "teacher_swap@0.10" and "teacher_auroc@0.10" (of its confidence; None where all
        its answers are right, or none), and "gain@0.10" over the first variant, with all values in percent or points.
    """
    rows: list[dict[str, Any]] = []
    for name, found in reports.items():
        students, teachers = ([_matcher(report, who) for report in found] for who in ("student", "teacher"))
        row: dict[str, Any] = {"variant": name, "seeds": len(found)}
        for alpha in ("0.10", "0.05"):
            values = [student["pck"]["image"][alpha] for student in students]
            row[f"pck@{alpha}"] = statistics.fmean(values)
            row[f"spread@{alpha}"] = statistics.stdev(values) if len(values) > 1 else None
        row["low@0.10"], row["high@0.10"] = _interval(students)
        row["swap@0.10"] = statistics.fmean(student["pck_dagger"]["swap"] for student in students)
        for alpha in ("0.10", "0.05"):
            row[f"teacher@{alpha}"] = statistics.fmean(teacher["pck"]["image"][alpha] for teacher in teachers)
        row["teacher_low@0.10"], row["teacher_high@0.10"] = _interval(teachers)
        row["teacher_swap@0.10"] = statistics.fmean(teacher["pck_dagger"]["swap"] for teacher in teachers)
        known = [teacher["confidence"]["auroc@0.10"] for teacher in teachers]
        row["teacher_auroc@0.10"] = None if None in known else 100 * statistics.fmean(known)
        row["gain@0.10"] = row["pck@0.10"] - (rows[0]["pck@0.10"] if rows else row["pck@0.10"])
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of :func:`summary` as a table in Markdown."""
    return markdown_table(HEADER, cells(rows), NOTE)


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the rows of :func:`summary` as text, a cell for each name in :data:`HEADER`."""
    return [[_cell(key, row[key]) for _, key in COLUMNS] for row in rows]


def _matcher(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(row for row in report["matchers"] if row["matcher"] == name)


def _interval(reports: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns the means of the lower and of the upper bounds."""
    lower, upper = zip(*(report["interval@0.10"] for report in reports), strict=True)
    return statistics.fmean(lower), statistics.fmean(upper)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:+.1f}" if key.startswith("gain") else f"{value:.1f}"
    return str(value)
