"""A chart of accuracy against time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from distill.core.files import replacing

KEY = "pck@0.10"


def accuracy_chart(rows: Sequence[Mapping[str, Any]], path: str | Path) -> bool:
    """Draws PCK against the milliseconds of one pair, a mark for each way to run and number of threads.

    Args:
        rows: of :func:`distill.bench.student.student_rates`; those without PCK, and those of more than one pair at a time,
            are left out.
        path: of the SVG file to write.

    Returns:
        Whether anything was drawn.
    """
    drawn = [row for row in rows if KEY in row and row.get("batch") == 1]
    if not drawn:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = {way: f"C{number}" for number, way in enumerate(dict.fromkeys(row["variant"] for row in drawn))}
    marks = {threads: mark for threads, mark in zip(sorted({row["threads"] for row in drawn}), "os^Dv*", strict=False)}
    for row in drawn:
        label = f"{row['variant']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        colour, mark = colours[row["variant"]], marks.get(row["threads"], "x")
        axes.scatter([row["latency_ms"]], [row[KEY]], color=colour, marker=mark, label=label)
    axes.set(xlabel="milliseconds a pair, median", ylabel="PCK@0.10 per image, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with replacing(path) as unfinished, rc_context({"svg.fonttype": "none", "svg.hashsalt": "distill"}):
        figure.savefig(unfinished, format="svg", metadata={"Date": None})
    return True
