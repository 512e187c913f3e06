"""Which plots a report has: PCK curves, accuracy against time, calibration, and the curve of a training."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import DataError
from distill.core.numbers import is_number
from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.evaluate import Evaluation
from distill.evaluation.plots import Axis, Plot, Series, colour, plot
from distill.metrics.pck import alpha_key

TOLERANCES = np.linspace(0, 0.2, 41)
Curve = dict[str, list[tuple[float, float]]]
PERCENT = Axis("PCK per image, percent", 0, 100)


def figures(comparison: Comparison, curve: Path | None = None) -> list[Plot]:
    """Returns the plots that the figures and the training curve fill."""
    plots = [pck_curves(comparison), calibration(comparison)] if comparison.scored else []
    timed = accuracy_against_time(comparison) if comparison.scored else None
    trained = training_curve(curve) if curve is not None else None
    return [*plots, *(found for found in (timed, trained) if found is not None)]


def pck_curves(comparison: Comparison) -> Plot:
    """Plots PCK per image by the tolerance."""
    series = [
        Series(name, [(float(t), _pck(evaluation, float(t))) for t in TOLERANCES], colour(number))
        for number, (name, evaluation) in enumerate(comparison.evaluations.items())
    ]
    return plot("PCK by tolerance", Axis("tolerance, fraction of its base", 0, 0.2), PERCENT, series)


def accuracy_against_time(comparison: Comparison) -> Plot | None:
    """Plots PCK@0.10 by milliseconds per pair, of those matchers that were timed."""
    series = [
        Series(name, [(e.report["latency_ms"], e.report["pck"]["image"][alpha_key(HEADLINE)])], colour(number))
        for number, (name, e) in enumerate(comparison.evaluations.items())
        if e.report["latency_ms"]
    ]
    if not series:
        return None
    times = [one.points[0][0] for one in series]
    low, high = (10 ** step(math.log10(t)) for step, t in ((math.floor, min(times)), (math.ceil, max(times))))
    x = Axis("milliseconds per pair", low, high if high > low else 10 * low, log=True)
    return plot("Accuracy against time", x, PERCENT._replace(label="PCK@0.10 per image, percent"), series, lines=False)


def calibration(comparison: Comparison) -> Plot:
    """Plots the share of right points by their confidence, in ten bins."""
    series = [
        Series(
            name,
            [(row["confidence"], 100 * row["accuracy"]) for row in e.report["confidence"]["reliability@0.10"]],
            colour(number),
        )
        for number, (name, e) in enumerate(comparison.evaluations.items())
    ]
    y = Axis("right within 0.10, percent", 0, 100)
    return plot("Calibration", Axis("confidence", 0, 1), y, series, diagonal=True)


def training_curve(file: Path) -> Plot | None:
    """Plots the validation figures of a run, or its loss where there are none; None where it logged neither."""
    logged = read_curve(file)
    chosen = [name for name in logged if name.startswith("val/pck")] or [
        name for name in logged if name.endswith("/loss")
    ]
    if not chosen:
        return None
    points = [point for name in chosen for point in logged[name]]
    last, lowest, highest = max(step for step, _ in points), *(f(value for _, value in points) for f in (min, max))
    is_pck = chosen[0].startswith("val/pck")
    y = Axis("percent", 0, 100) if is_pck else Axis("loss", min(0, lowest), highest if highest > min(0, lowest) else 1)
    series = [Series(name, logged[name], colour(number)) for number, name in enumerate(chosen)]
    return plot("Training", Axis("step", 0, last or 1), y, series)


def read_curve(file: Path) -> Curve:
    """Returns the finite figures of a run's log, (step, value) by name; lines that are no JSON objects are left out.

    Raises:
        DataError: when the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected the metrics.jsonl of a fit at {file} but it cannot be read ({error}); correct curve."
        ) from error
    found: Curve = defaultdict(list)
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step: Any = entry.get("step") if isinstance(entry, dict) else None
        if _is_finite(step):
            for name, value in entry.items():
                if name not in ("step", "epoch") and _is_finite(value):
                    found[name].append((float(step), float(value)))
    return found


def _is_finite(value: object) -> bool:
    return is_number(value) and abs(value) < 1e15


def _pck(evaluation: Evaluation, alpha: float) -> float:
    return 100 * float(np.mean([right.mean() for right in evaluation.right(alpha)]))
