"""Reports of a comparison: a table for the terminal, Markdown, and one self-contained HTML file."""

import base64
import html
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from distill.core.protocols import Benchmark
from distill.data.pairs import from_original, to_original
from distill.evaluation.compare import HEADLINE, Comparison
from distill.evaluation.pictures import match_panel
from distill.metrics.pck import ALPHAS, alpha_key

COLUMNS = (
    "matcher",
    *(f"PCK@{alpha_key(a)} image" for a in ALPHAS),
    *(f"PCK@{alpha_key(a)} point" for a in ALPHAS),
    "agrees@0.10",
    "ms/pair",
    "parameters",
)


def table(comparison: Comparison) -> list[list[str]]:
    """Returns the figures as rows of text, in the order of ``COLUMNS``; what was not measured is a dash."""
    rows = []
    for name, evaluation in comparison.evaluations.items():
        report = evaluation.report
        figures = [report["pck"][average][alpha_key(a)] for average in ("image", "point") for a in ALPHAS]
        agrees = comparison.agreement.get(name, {}).get(f"within_{alpha_key(HEADLINE)}")
        parameters = report.get("parameters")
        rows.append(
            [
                name,
                *(f"{figure:.1f}" for figure in figures),
                "–" if agrees is None else f"{agrees:.1f}",
                "–" if report["latency_ms"] is None else f"{report['latency_ms']:.1f}",
                "–" if parameters is None else f"{parameters / 1e6:.2f} M",
            ]
        )
    return rows


INTERVALS = "PCK@0.10 per image, with the 95 % interval over images:"
BOTH = (
    "The first 95 % interval is a bootstrap's that takes pairs for independent, as papers do; "
    "the second allows for images that serve in several pairs:"
)


def markdown(comparison: Comparison) -> str:
    """Returns the report in Markdown."""
    lines = [f"# {heading(comparison)}", "", convention(comparison), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in table(comparison)]
    lines += ["", INTERVALS, "", *(f"- {text}" for text in intervals(comparison))]
    lines += ["", f"Differences from {comparison.reference}, in points. {BOTH}", ""]
    lines += [f"- {text}" for text in differences(comparison)]
    lines += ["", *(f"{note}\n" for note in comparison.notes)]
    return "\n".join(lines)


def html_page(comparison: Comparison, panels: list[Image.Image]) -> str:
    """Returns the report as one HTML page that needs no other file.

    Args:
        comparison: the figures.
        panels: pictures of matches.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table(comparison)
    )
    sure, items = _items(intervals(comparison)), _items(differences(comparison))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in comparison.notes)
    pictures = "".join(f'<img alt="matches" src="data:image/png;base64,{_base64(panel)}">' for panel in panels)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(heading(comparison))}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} img {{ max-width: 100%; display: block; margin: 1rem 0 }}
.bar {{ fill: #4878a8 }} text {{ font: 13px system-ui, sans-serif }}
</style>
<h1>{html.escape(heading(comparison))}</h1><p>{html.escape(convention(comparison))}</p>
{_bars(comparison)}
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<p>{INTERVALS}</p><ul>{sure}</ul>
<h2>Differences</h2><p>From {html.escape(comparison.reference)}, in points. {BOTH}</p><ul>{items}</ul>{notes}
<h2>Matches</h2><p>The best, middle and worst pairs of {html.escape(list(comparison.evaluations)[min(1, len(comparison.evaluations) - 1)])};
lines lead from each answer to the point in the last column.</p>{pictures}
</html>
"""


def _items(lines: list[str]) -> str:
    return "".join(f"<li>{html.escape(line)}</li>" for line in lines)


def heading(comparison: Comparison) -> str:
    """Returns what was compared on what."""
    report = _first(comparison)
    return f"{', '.join(comparison.evaluations)} on {report['data']} {report['split']}"


def convention(comparison: Comparison) -> str:
    """Returns how the figures are to be read."""
    report = _first(comparison)
    frame = "in original target pixels" if report["convention"] == "canonical" else "by the convention of the paper"
    return (
        f"{report['n_pairs']} pairs of {report['n_images']} images, {report['n_points']} points; PCK in percent, {frame}, distance <= "
        f"alpha x threshold ({report['threshold']}), mean over pairs (image) and over points (point)."
    )


def intervals(comparison: Comparison) -> list[str]:
    """Returns a line for each matcher: its PCK@0.10 per image with the interval."""
    lines = []
    for name, evaluation in comparison.evaluations.items():
        score, (low, high) = evaluation.report["pck"]["image"][alpha_key(HEADLINE)], evaluation.report["interval@0.10"]
        lines.append(f"{name}: {score:.1f} [{low:.1f}, {high:.1f}]")
    return lines


def differences(comparison: Comparison) -> list[str]:
    """Returns a line for each matcher but the reference, and each tolerance."""
    return [
        f"{name} at {alpha}: {d['mean']:+.1f}, over pairs [{d['low']:+.1f}, {d['high']:+.1f}], "
        f"over images [{d['low_images']:+.1f}, {d['high_images']:+.1f}]"
        for name, at in comparison.differences.items()
        for alpha, d in at.items()
    ]


def example_panels(comparison: Comparison, benchmark: Benchmark, count: int = 6) -> list[Image.Image]:
    """Returns panels of pairs from the best to the worst of the second matcher, evenly spaced; the truth comes last."""
    names = list(comparison.evaluations)
    judged = comparison.evaluations[names[min(1, len(names) - 1)]]
    order = np.argsort(-judged.image_pck[:, ALPHAS.index(HEADLINE)], kind="stable")
    places = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    return [pair_panel(comparison, benchmark, int(place)) for place in places]


def pair_panel(comparison: Comparison, benchmark: Benchmark, place: int) -> Image.Image:
    """Draws the evaluated pair number ``place``: source, each matcher's answer, truth (or the labels that stand for it)."""
    first = next(iter(comparison.evaluations.values()))
    pairs = benchmark[first.pairs[place]]

    def resized(points: np.ndarray) -> np.ndarray:
        return from_original(torch.as_tensor(points)[None], pairs)[0].numpy()

    answers = {name: resized(e.predictions[place]) for name, e in comparison.evaluations.items() if name not in HIDDEN}
    truth = to_original(pairs.trg_kps, pairs)[0, pairs.kps_mask[0]].numpy()
    answers[getattr(benchmark, "truth_name", "ground truth")] = resized(truth)
    points = pairs.src_kps[0, pairs.kps_mask[0]].numpy()
    return match_panel(pairs.src_img[0], pairs.trg_img[0], points, answers, resized(truth))


HIDDEN = ("nearest_neighbour", "box_relative")
"""Matchers that pictures leave out, so that teacher and student are large enough to be seen."""


def _bars(comparison: Comparison) -> str:
    rows = []
    for number, (name, evaluation) in enumerate(comparison.evaluations.items()):
        value, y = evaluation.report["pck"]["image"][alpha_key(HEADLINE)], 26 * number
        rows.append(
            f'<text x="0" y="{y + 16}">{html.escape(name)}</text><rect class="bar" x="170" y="{y + 3}" height="18" '
            f'width="{5 * value:.1f}"/><text x="{176 + 5 * value:.1f}" y="{y + 16}">{value:.1f}</text>'
        )
    height = 26 * len(rows)
    return f'<h2>PCK@0.10 per image</h2><svg width="740" height="{height}" role="img">{"".join(rows)}</svg>'


def _base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _first(comparison: Comparison) -> dict[str, Any]:
    return next(iter(comparison.evaluations.values())).report
