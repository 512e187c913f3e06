"""Draws the diagrams of the documentation as SVG when the site is built, so that its pages load nothing from elsewhere.

A diagram is a block of Mermaid's flowchart language, which GitHub draws by itself. Of the language this is understood:
the direction (``TB`` or ``LR``), nodes ``id["label"]`` and ``id{"label"}``, ``<br/>`` in a label, and chains of ``-->`` and
``-- text -->``. Nodes are laid out in layers (Sugiyama, Tagawa and Toda, 1981).

``python docs/diagrams.py`` writes the drawing of the rooms into the page on the architecture: their order is that of
``tests/test_architecture.py``, their texts are the first sentences of their charters. A test holds both equal.
"""

import ast
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/concepts/architecture.md"
FENCE = re.compile(r"^```mermaid\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NODE = re.compile(r'(?P<name>\w+)(?:\["(?P<box>[^"]*)"\]|\{"(?P<question>[^"]*)"\})?')
ARROW = re.compile(r"\s*(?:-->|--\s+(?P<label>[^-]+?)\s+-->)\s*")
CHARACTER, BOLD, LINE, PADDING, GAP, STEP = 7.4, 8.0, 18, 12, 24, 32  # px; the first two are widths of a character


class Graph(NamedTuple):
    """A flowchart.

    Attributes:
        downwards: whether layers follow each other from top to bottom, else from left to right.
        labels: of the nodes, lines separated by ``<br/>``, by name.
        edges: from, to, and the text at the arrow.
    """

    downwards: bool
    labels: dict[str, str]
    edges: list[tuple[str, str, str]]


class Place(NamedTuple):
    """A rectangle, px: its centre and its sides."""

    x: float
    y: float
    width: float
    height: float


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Returns a page with its Mermaid blocks replaced by SVG; MkDocs calls it for each page."""
    return FENCE.sub(lambda block: svg(parse(block["text"])), markdown)


def parse(text: str) -> Graph:
    """Returns the flowchart that a Mermaid block describes.

    Raises:
        ValueError: naming the line that is not understood.
    """
    first, *lines = text.strip().splitlines()
    kind = re.fullmatch(r"flowchart (TB|LR)", first.strip())
    if kind is None:
        raise ValueError(f"Expected 'flowchart TB' or 'flowchart LR' but got {first!r}")
    graph = Graph(kind[1] == "TB", {}, [])
    for line in filter(None, map(str.strip, lines)):
        position, before, label = 0, "", ""
        while position < len(line):
            node = NODE.match(line, position)
            if node is None:
                raise ValueError(f"Expected a node in {line!r} at {line[position:]!r}")
            text = node["box"] if node["box"] is not None else node["question"]
            if text is not None or node["name"] not in graph.labels:
                graph.labels[node["name"]] = node["name"] if text is None else text
            if before:
                graph.edges.append((before, node["name"], label))
            arrow = ARROW.match(line, node.end())
            if arrow is None and line[node.end() :].strip():
                raise ValueError(f"Expected an arrow in {line!r} at {line[node.end() :]!r}")
            before, label = node["name"], (arrow["label"] or "") if arrow else ""
            position = arrow.end() if arrow else len(line)
    return graph


def layers(graph: Graph) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the names in each layer, in their order, and the path of each edge through the layers.

    A node's layer is the length of the longest path that leads to it. Where an edge skips layers, a place is kept free for
    it in each: a name with a space, which no node has.

    Raises:
        ValueError: for a circle.
    """
    depth = dict.fromkeys(graph.labels, 0)
    for _ in depth:
        for start, end, _label in graph.edges:
            depth[end] = max(depth[end], depth[start] + 1)
    if any(depth[end] <= depth[start] for start, end, _ in graph.edges):
        raise ValueError("Expected a flowchart without circles")
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in graph.labels:
        rows[depth[name]].append(name)
    paths = []
    for start, end, _ in graph.edges:
        between = [f"{start} {end} {level}" for level in range(depth[start] + 1, depth[end])]
        for level, name in enumerate(between, start=depth[start] + 1):
            rows[level].append(name)
        paths.append([start, *between, end])
    links = [link for path in paths for link in zip(path, path[1:], strict=False)]
    for _ in range(8):  # each layer in the order of its neighbours, down and up again
        for level in (*range(1, len(rows)), *range(len(rows) - 2, -1, -1)):
            rows[level].sort(key=lambda name, level=level: _mean_place(name, level, rows, links))
    return rows, paths


def _mean_place(name: str, level: int, rows: list[list[str]], links: list[tuple[str, str]]) -> float:
    """Returns the mean place, in [0, 1], of the neighbours of a node in the layers before and after."""
    near = {start for start, end in links if end == name} | {end for start, end in links if start == name}
    places = [
        (row.index(other) + 0.5) / len(row)
        for row in (rows[level - 1] if level else [], rows[level + 1] if level + 1 < len(rows) else [])
        for other in row
        if other in near
    ]
    return sum(places) / len(places) if places else 0.5


def placed(graph: Graph) -> tuple[dict[str, Place], list[list[str]], tuple[float, float]]:
    """Returns the rectangle of each node and free place, the paths of the edges, and width and height of the drawing."""
    rows, paths = layers(graph)
    sizes = {name: _size(label) for name, label in graph.labels.items()}
    if not graph.downwards:
        sizes = {name: (height, width) for name, (width, height) in sizes.items()}
    across = {name: sizes[name][0] if name in sizes else 0.0 for row in rows for name in row}
    breadth = max(sum(across[name] for name in row) + GAP * (len(row) - 1) for row in rows) + 2 * PADDING
    places, front = {}, float(PADDING)
    for row in rows:
        thickness = max(sizes[name][1] for name in row if name in sizes)
        side = (breadth - sum(across[name] for name in row) - GAP * (len(row) - 1)) / 2
        for name in row:
            centre, middle = side + across[name] / 2, front + thickness / 2
            wide, high = sizes.get(name, (0.0, thickness))
            places[name] = Place(centre, middle, wide, high) if graph.downwards else Place(middle, centre, high, wide)
            side += across[name] + GAP
        front += thickness + STEP
    length = front - STEP + PADDING
    return places, paths, (breadth, length) if graph.downwards else (length, breadth)


def _size(label: str) -> tuple[float, float]:
    lines = label.split("<br/>")
    width = max(BOLD * len(lines[0]), *(CHARACTER * len(line) for line in lines))
    return width + 2 * PADDING, LINE * len(lines) + PADDING


def svg(graph: Graph) -> str:
    """Returns a flowchart as an SVG element in the colours of the page, with its text as description."""
    places, paths, (width, height) = placed(graph)
    drawn = [_path([places[name] for name in path], graph.downwards) for path in paths]
    for (start, _end, label), path in zip(graph.edges, paths, strict=True):
        if label:
            (x0, y0), (x1, y1) = _ends(places[start], places[path[1]], graph.downwards)
            drawn.append(_text((x0 + x1) / 2 + 10, (y0 + y1) / 2, label))
    for name, label in graph.labels.items():
        x, y, wide, high = places[name]
        drawn.append(
            f'<rect x="{x - wide / 2:.1f}" y="{y - high / 2:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="4" '
            'fill="var(--md-code-bg-color, #f5f5f5)" stroke="currentColor"/>'
        )
        lines = label.split("<br/>")
        for number, line in enumerate(lines):
            drawn.append(_text(x, y + LINE * (number - (len(lines) - 1) / 2) + 4.5, line, bold=not number))
    words = "; ".join(f"{start} to {end}" for start, end, _ in graph.edges)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width: {width:.0f}px" '
        f'role="img" aria-label="Flowchart: {escape(words)}" font-family="sans-serif" font-size="13">'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>' + "".join(drawn) + "</svg>"
    )


def _ends(first: Place, second: Place, downwards: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns x, y where an arrow leaves the first rectangle and where it meets the second."""
    if downwards:
        return (first.x, first.y + first.height / 2), (second.x, second.y - second.height / 2)
    return (first.x + first.width / 2, first.y), (second.x - second.width / 2, second.y)


def _path(through: list[Place], downwards: bool) -> str:
    """Returns a curve from the border of the first rectangle to that of the last, straight through free places."""
    commands = ""
    for first, second in zip(through, through[1:], strict=False):
        (x0, y0), (x1, y1) = _ends(first, second, downwards)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        bends = ((x0, y), (x1, y)) if downwards else ((x, y0), (x, y1))
        commands += f"{'L' if commands else 'M'}{x0:.1f} {y0:.1f}"
        commands += "C" + " ".join(f"{px:.1f} {py:.1f}" for px, py in (*bends, (x1, y1)))
    return f'<path d="{commands}" fill="none" stroke="currentColor" marker-end="url(#head)"/>'


def _text(x: float, y: float, text: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="currentColor"{weight}>{escape(text)}</text>'


def rooms_text() -> str:
    """Returns the flowchart of the rooms of ``distill``, from the top down, with the first clause of each charter."""
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text(encoding="utf-8"))
    rooms = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS"
    )[::-1]
    lines = ["flowchart TB"]
    for room in rooms:
        source = (ROOT / f"distill/{room}/__init__.py").read_text(encoding="utf-8")
        charter = re.split(r"[;.]", (ast.get_docstring(ast.parse(source)) or "").splitlines()[0])[0]
        lines.append(f'{room}["{room}<br/>{charter}"]')
    return "\n    ".join([*lines, " --> ".join(rooms)]) + "\n"


def with_rooms(page: str) -> str:
    """Returns the text of the page on the architecture with its first diagram replaced by that of the rooms."""
    return FENCE.sub(lambda block: f"```mermaid\n{rooms_text()}```", page, count=1)


if __name__ == "__main__":
    PAGE.write_text(with_rooms(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
