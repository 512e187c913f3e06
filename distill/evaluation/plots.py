"""Plots of a comparison as SVG elements that need no other file.

Elements are built as a tree, so that whatever a name holds is written as text.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from matplotlib.ticker import LogLocator, MaxNLocator

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
"""Colours that people with colour blindness tell apart (Okabe and Ito), and two more; repeated for further matchers."""

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 10, 42


def colour(index: int) -> str:
    """Returns the colour of matcher number ``index``, the same everywhere in a report."""
    return PALETTE[index % len(PALETTE)]


class Series(NamedTuple):
    """A line or a marker of a plot.

    Attributes:
        name: what its points are of.
        points: x, y of each.
        colour: of line and markers.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str


class Axis(NamedTuple):
    """The range of an axis.

    Attributes:
        label: what it shows, with the unit.
        low: where it begins.
        high: where it ends.
        log: whether it is logarithmic.
    """

    label: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Returns where ``value`` lies, 0 at the beginning and 1 at the end."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Returns round numbers along the axis."""
        locator = LogLocator(numticks=8) if self.log else MaxNLocator(nbins=5)
        return [
            float(v)
            for v in locator.tick_values(self.low, self.high)
            if self.low <= v * (1 + 1e-9) and v <= self.high * (1 + 1e-9)
        ]


class Plot(NamedTuple):
    """A picture with what its legend names.

    Attributes:
        title: what it shows.
        series: for the legend.
        svg: the picture.
    """

    title: str
    series: Sequence[Series]
    svg: str


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series], lines: bool = True, diagonal: bool = False) -> Plot:
    """Draws series of points.

    Args:
        title: what it shows.
        x: the horizontal axis.
        y: the vertical axis.
        series: what to draw.
        lines: whether points are joined; otherwise, and where a series has few, they are marked.
        diagonal: whether a line leads from corner to corner.
    """
    root = ElementTree.Element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    ElementTree.SubElement(root, "title").text = title
    _axes(root, x, y)
    if diagonal:
        _line(root, [_at(x, y, x.low, y.low), _at(x, y, x.high, y.high)], "diagonal")
    for one in series:
        places = [_at(x, y, *point) for point in one.points]
        if lines:
            _line(root, places, "series", one.colour)
        for (left, top), value in zip(places, one.points, strict=True):
            if not lines or len(places) <= 12:
                dot = ElementTree.SubElement(root, "circle", cx=f"{left:.1f}", cy=f"{top:.1f}", r="4", fill=one.colour)
                ElementTree.SubElement(dot, "title").text = f"{one.name}: {value[0]:.3g}, {value[1]:.3g}"
    return Plot(title, series, ElementTree.tostring(root, encoding="unicode"))


def _at(x: Axis, y: Axis, across: float, up: float) -> tuple[float, float]:
    return LEFT + x.place(across) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y.place(up) * (HEIGHT - TOP - BOTTOM)


def _axes(root: ElementTree.Element, x: Axis, y: Axis) -> None:
    for value in y.ticks():
        left, top = _at(x, y, x.low, value)
        _line(root, [(left, top), (WIDTH - RIGHT, top)], "grid")
        _text(root, left - 6, top + 4, f"{value:g}", "end")
    for value in x.ticks():
        left, top = _at(x, y, value, y.low)
        _line(root, [(left, top), (left, top + 4)], "axis")
        _text(root, left, top + 17, f"{value:g}", "middle")
    _line(root, [_at(x, y, x.low, y.high), _at(x, y, x.low, y.low), _at(x, y, x.high, y.low)], "axis")
    _text(root, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.label, "middle")
    turned = _text(root, 12, (HEIGHT - BOTTOM + TOP) / 2, y.label, "middle")
    turned.set("transform", f"rotate(-90 12 {(HEIGHT - BOTTOM + TOP) / 2})")


def _line(
    root: ElementTree.Element, points: Sequence[tuple[float, float]], kind: str, stroke: str | None = None
) -> None:
    line = ElementTree.SubElement(root, "polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points))
    line.set("class", kind)
    if stroke is not None:
        line.set("stroke", stroke)


def _text(root: ElementTree.Element, left: float, top: float, text: str, anchor: str) -> ElementTree.Element:
    element = ElementTree.SubElement(root, "text", {"x": f"{left:.1f}", "y": f"{top:.1f}", "text-anchor": anchor})
    element.text = text
    return element
