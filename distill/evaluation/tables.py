"""The figures of a comparison as tables, for Markdown and HTML alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.scores import VARIATIONS
from distill.metrics.pck import ALPHAS, alpha_key

KEYS = [alpha_key(alpha) for alpha in ALPHAS]
HEAD = alpha_key(HEADLINE)
AVERAGES = ("image", "point")
AT_ALL = [f"{average} @{key}" for average in AVERAGES for key in KEYS]
Figures = Mapping[str, Any]
NBSP = "\N{NO-BREAK SPACE}"


class Cell(NamedTuple):
    """One figure.

    Attributes:
        text: as it is shown; a dash for what was not measured.
        value: what a table is sorted by; None comes last.
    """

    text: str
    value: float | str | None


class Table(NamedTuple):
    """Figures with what they mean.

    Attributes:
        title: what the table is about.
        note: how its figures are to be read.
        columns: headers.
        rows: one cell for each column; the first names the row.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]


def number(value: Any, digits: int = 1, sign: bool = False, unit: float = 1) -> Cell:
    """Returns ``value`` over ``unit`` with as many ``digits``, or a dash for None."""
    if value is None:
        return Cell("–", None)
    return Cell(f"{value / unit:{'+' if sign else ''}.{digits}f}", float(value))


def word(text: str) -> Cell:
    """Returns a cell that is sorted as text."""
    return Cell(text, text)


def count(value: int | None) -> Cell:
    """Returns a whole number, its thousands grouped."""
    return Cell("–", None) if value is None else Cell(f"{value:,}", value)


def tables(comparison: Comparison) -> list[Table]:
    """Returns all tables that the figures fill, the most important first."""
    scored: Sequence[Callable[[Comparison], Table | None]]
    scored = (accuracy, differences, wins, errors, agreement, confidence, cost, *GROUPED, further)
    surveyed = (agreement, unscored_confidence, cost)
    made = [table(comparison) for table in (scored if comparison.scored else surveyed)]
    return [table for table in made if table is not None and table.rows]


def accuracy(comparison: Comparison) -> Table:
    """Returns PCK at all tolerances."""
    rows = []
    for name, report in _reports(comparison):
        pck, (low, high) = report["pck"], report["interval@0.10"]
        mean = number(report["pck_category_mean"]["image"][HEAD])
        rows.append([word(name), *_at_all(pck), Cell(f"{low:.1f}{NBSP}to{NBSP}{high:.1f}", low), mean])
    note = (
        "PCK in percent; image: mean over pairs of each pair's share of right points, point: share of right points among all. The 95 % "
        f"interval is that of PCK@{HEAD} per image and allows for images that serve in several pairs."
    )
    columns = ["matcher", *AT_ALL, "95 % interval", f"mean of categories @{HEAD}"]
    return Table("Accuracy", note, columns, rows)


def differences(comparison: Comparison) -> Table | None:
    """Returns the paired differences of PCK per image from the reference's."""
    rows = []
    for name, at in comparison.differences.items():
        cells = [
            Cell(f"{d['mean']:+.1f} [{d['low']:+.1f},{NBSP}{d['high']:+.1f}]", d["mean"])
            for d in (at[key] for key in KEYS)
        ]
        d = at[HEAD]
        rows.append(
            [word(name), *cells, Cell(f"[{d['low_images']:+.1f},{NBSP}{d['high_images']:+.1f}]", d["low_images"])]
        )
    note = (
        "PCK per image in points on the same pairs. The 95 % intervals are a bootstrap's that takes pairs for independent, as "
        "papers do; the last allows for images that serve in several pairs."
    )
    columns = ["matcher", *(f"@{key}" for key in KEYS), f"over images @{HEAD}"]
    return Table(f"Differences from {comparison.reference}", note, columns, rows)


def wins(comparison: Comparison) -> Table | None:
    """Returns where each matcher is right and the reference is not."""
    rows = [
        [word(name), *(count(found["pairs"][k]) for k in ("wins", "losses", "ties"))]
        + [count(found["points"][k]) for k in ("both", "wins", "losses", "neither")]
        for name, found in comparison.win_loss.items()
    ]
    other = comparison.reference
    columns = [
        "matcher",
        "pairs won",
        "lost",
        "tied",
        "both right",
        "only this right",
        f"only {other} right",
        "neither right",
    ]
    note = f"Right within {HEAD}. A pair is won with more right points than {other} has; the last four columns count points."
    return Table(f"Wins and losses against {other}", note, columns, rows)


def errors(comparison: Comparison) -> Table:
    """Returns the kinds of errors, and the accuracy given the candidates."""
    rows = []
    for name, report in _reports(comparison):
        kinds = [number(report["pck_dagger"][kind]) for kind in ("right", "jitter", "swap", "miss")]
        given = [_given(report["given_candidates"][which]) for which in ("any", "group")]
        aware = report.get("geometry_aware", {}).get("image", {}).get(HEAD)
        rows.append([word(name), *kinds, *given, number(aware)])
    columns = [
        "matcher",
        "PCK-dagger",
        "jitter",
        "swap",
        "miss",
        "given the points",
        "given the concept",
        f"geometry-aware @{HEAD}",
    ]
    note = (
        f"Percent of points, right within {HEAD}. PCK-dagger counts a point as right only if its keypoint is also the nearest annotated "
        "one; jitter: the nearest, but none is within the tolerance; swap: near another keypoint; miss: near none, and another is "
        "nearest. Given the points: the heatmap is highest at the right one of the target's annotated points; given the concept: at the "
        "right one of its mirrored or repeated parts; chance in brackets. Geometry-aware: PCK per image of points whose mirrored or "
        "repeated part is visible too."
    )
    return Table("Errors", note, columns, rows)


def agreement(comparison: Comparison) -> Table | None:
    """Returns how far each matcher agrees with the reference."""
    rows = []
    for name, found in comparison.agreement.items():
        within = [number(found[f"within_{key}"]) for key in KEYS]
        split = [number(found[f"where_{kind}"]["within"]) for kind in ("right", "wrong") if comparison.scored]
        rows.append([word(name), *within, number(found["median_relative"], 3), *split])
    columns = ["matcher", *(f"within {key}" for key in KEYS), "median distance"]
    note = (
        "Percent of points whose two answers lie that close together; the median distance as a fraction of the tolerance base "
        f"({_base(comparison)})."
    )
    if comparison.scored:
        columns += [f"where {comparison.reference} is right", "where it is wrong"]
        note += f" The last two columns: within {HEAD}."
    return Table(f"Agreement with {comparison.reference}", note, columns, rows)


def confidence(comparison: Comparison) -> Table:
    """Returns what the confidences are worth."""
    rows = []
    for name, report in _reports(comparison):
        found = report["confidence"]
        kept = [number(found["pck@0.10_of_kept"][share]) for share in ("0.25", "0.50", "0.75", "1.00")]
        rows.append(
            [
                word(name),
                number(found["auroc@0.10"], 3),
                number(found["ece@0.10"], 3),
                number(found["brier@0.10"], 3),
                *kept,
            ]
        )
    columns = ["matcher", "AUROC", "calibration error", "Brier score", "PCK of surest 25 %", "50 %", "75 %", "all"]
    note = (
        f"Right within {HEAD}. AUROC: probability that a right point has a higher confidence than a wrong one. Calibration error: mean "
        "distance of confidence and share of right points, over ten bins. PCK per point of the points with the highest confidence."
    )
    return Table("Confidence", note, columns, rows)


def unscored_confidence(comparison: Comparison) -> Table:
    """Returns the confidences and the cycle consistency where nothing is annotated."""
    rows = []
    for name, report in _reports(comparison):
        sure, cycle = report["confidence"], report["cycle"] or {}
        figures = [number(sure["mean"], 2), *(number(value, 2) for value in sure["quartiles"])]
        rows.append([word(name), *figures, number(cycle.get("within_0.10")), number(cycle.get("median"), 3)])
    columns = [
        "matcher",
        "mean confidence",
        "lower quartile",
        "median",
        "upper quartile",
        "back within 0.10",
        "median way back",
    ]
    note = (
        "Cycle consistency: each answer is matched back to the source. Percent of points that come back within 0.10 of the source's "
        "longer side, and the median distance as a fraction of it. A consistent matcher may be consistently wrong. Stored answers "
        "have no way back."
    )
    return Table("Confidence and cycle consistency", note, columns, rows)


def cost(comparison: Comparison) -> Table:
    """Returns time, memory and size."""
    rows = [
        [
            word(name),
            number(report["latency_ms"]),
            number(report.get("peak_memory_mib"), 0),
            number(report.get("parameters"), 2, unit=1e6),
        ]
        for name, report in _reports(comparison)
    ]
    note = (
        "Milliseconds per pair by the wall clock, in batches, loading not included; peak memory of the process, or of the accelerator, "
        "while the matcher ran, with whatever else was loaded; parameters in millions. Stored answers have no memory, stored labels no "
        "time."
    )
    return Table("Cost", note, ["matcher", "ms per pair", "peak memory, MiB", "parameters, M"], rows)


def categories(comparison: Comparison) -> Table | None:
    """Returns PCK by category, where there are several."""
    reports = dict(_reports(comparison))
    known = comparison.first.report["category_pairs"]
    if len(known) < 2:
        return None
    rows = [
        [word(category), count(pairs), *(number(report["per_category"][category][HEAD]) for report in reports.values())]
        for category, pairs in known.items()
    ]
    return Table("By category", f"PCK@{HEAD} per image, percent.", ["category", "pairs", *reports], rows)


def categories_in_full(comparison: Comparison) -> Table | None:
    """Returns PCK by category at all tolerances, per image and per point, one row for each matcher."""
    known = comparison.first.report["category_pairs"]
    if len(known) < 2:
        return None
    rows = []
    for name, report in _reports(comparison):
        for category, pairs in known.items():
            found = {"image": report["per_category"][category], "point": report["per_category_point"][category]}
            rows.append([word(category), word(name), count(pairs), *_at_all(found)])
    note = "PCK in percent. A click on another header after this one keeps its order among equals."
    return Table("By category, all tolerances", note, ["category", "matcher", "pairs", *AT_ALL], _by_name(rows))


def variations(comparison: Comparison) -> Table | None:
    """Returns PCK by viewpoint, scale, truncation and occlusion, where the data say them."""
    reports = dict(_reports(comparison))
    first = comparison.first.report.get("per_variation", {})
    rows = [
        [word(f"{flag} {level}"), count(found["n_pairs"])]
        + [number(report["per_variation"][flag][level]["image"][HEAD]) for report in reports.values()]
        for flag in VARIATIONS
        for level, found in first.get(flag, {}).items()
    ]
    note = (
        f"PCK@{HEAD} per image, percent, by SPair-71k's flags of a pair: difference of viewpoint and of scale 0 (easy) to 2 (hard); "
        "truncation and occlusion 0 (none), 1 (source), 2 (target), 3 (both)."
    )
    return Table("By variation", note, ["variation", "pairs", *reports], rows)


def variations_in_full(comparison: Comparison) -> Table | None:
    """Returns PCK by variation at all tolerances, per image and per point, one row for each matcher."""
    rows = [
        [word(f"{flag} {level}"), word(name), count(found["n_pairs"]), *_at_all(found)]
        for name, report in _reports(comparison)
        for flag in VARIATIONS
        for level, found in report.get("per_variation", {}).get(flag, {}).items()
    ]
    columns = ["variation", "matcher", "pairs", *AT_ALL]
    return Table("By variation, all tolerances", "PCK in percent; see above.", columns, _by_name(rows))


GROUPED = (categories, categories_in_full, variations, variations_in_full)
"""The tables of parts of the pairs."""


def further(comparison: Comparison) -> Table | None:
    """Returns the metrics of the user's own."""
    reports = dict(_reports(comparison))
    names = [name for name, _ in _flat(comparison.first.report.get("metrics", {}))]
    flat = {matcher: dict(_flat(report.get("metrics", {}))) for matcher, report in reports.items()}
    rows = [[word(name), *(number(flat[matcher].get(name), 3) for matcher in reports)] for name in names]
    return Table("Further metrics", "As metrics= describes them.", ["metric", *reports], rows)


def _flat(figures: Figures, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _at_all(pck: Figures) -> list[Cell]:
    """Returns PCK at all tolerances, per image and per point, in the order of :data:`AT_ALL`."""
    return [number(pck[average][key]) for average in AVERAGES for key in KEYS]


def _by_name(rows: list[list[Cell]]) -> list[list[Cell]]:
    """Returns the rows with those of one name together, in the order in which names come first."""
    names = list(dict.fromkeys(row[0].text for row in rows))
    return sorted(rows, key=lambda row: names.index(row[0].text))


def _given(found: Figures) -> Cell:
    if found["right"] is None:
        return Cell("–", None)
    return Cell(f"{found['right']:.1f}{NBSP}({found['chance']:.0f})", found["right"])


def _reports(comparison: Comparison) -> Sequence[tuple[str, dict[str, Any]]]:
    return [(name, evaluation.report) for name, evaluation in comparison.evaluations.items()]


def _base(comparison: Comparison) -> str:
    if comparison.first.report["convention"] == "paper":
        return "that of the paper's convention, in images of 512 x 512 px"
    words = {"bbox": "the longer side of the target's box", "img": "the longer side of the target image"}
    return words.get(comparison.first.report["threshold"], "the longer side of the box around the target's points")
