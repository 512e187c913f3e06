"""A page in which a person looks at carried points, the least sure first, and sets wrong ones right.

It is one HTML file that opens from disk and asks nothing of any address: pictures, data, style and script are in it, and a
content security policy allows no others. Text from data reaches the page as JSON only, and is shown as text. What was corrected is
saved as a COCO file by the browser's download; :mod:`distill.cli.commands.propagate` writes it into the annotations.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from distill.core.errors import ConfigError, DataError
from distill.data.coco import PIXEL_CENTRE, coco_places
from distill.data.images import read_rgb
from distill.data.keypoints import ImageKeypoints

PAGE = Path(__file__).parent / "review_page"
EXAMPLES = 30  # annotated photographs in the page, to look up a part
JPEG_QUALITY = 80


def check_review(count: int, side: int) -> None:
    """Raises a :class:`ConfigError` unless ``count`` photographs of ``side`` px can be shown."""
    if count < 0 or side < 64:
        raise ConfigError(
            f"Expected review.count of at least 0 and review.side of at least 64 but got {count} and {side}."
        )


def review_page(
    root: Path, images: Mapping[str, ImageKeypoints], content: Mapping[str, Any], count: int, side: int
) -> tuple[str, list[DataError]]:
    """Returns the HTML of the page, and the errors of photographs that it lacks because they cannot be read.

    Args:
        root: folder of the photographs.
        images: what is known of them, by name.
        content: of the COCO file that holds the same.
        count: how many photographs with a matcher's points are in the page, those with the least sure ones.
        side: the longer side of their pictures, px.
    """
    places = coco_places(content, images)
    by_matcher = sorted((min(i.confidence.values()), name) for name, i in images.items() if i.confidence)
    unread: list[DataError] = []
    shown = _photos(root, [name for _, name in by_matcher], side, count, unread)
    groups = {_group(name) for name in shown}
    sources = [n for n, image in images.items() if image.points and not image.confidence and _group(n) in groups]
    chosen = _photos(root, sources, side // 2, EXAMPLES, unread)
    data = {
        "categories": content["categories"],
        "photos": [photo | {"image": places[name][0], "annotation": places[name][1]} for name, photo in shown.items()],
        "sources": [photo | {"points": _pixels(images[name])} for name, photo in chosen.items()],
    }
    style, script = ((PAGE / f"review.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    page = Template((PAGE / "review.html").read_text(encoding="utf-8")).substitute(
        style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), data=json_in_html(data)
    )
    return page, unread


def json_in_html(data: Any) -> str:
    """Returns JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(data, allow_nan=False).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _photos(
    root: Path, names: Iterable[str], side: int, count: int, unread: list[DataError]
) -> dict[str, dict[str, Any]]:
    """Returns the first ``count`` photographs that can be read, by name; the errors of others are added to ``unread``."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if len(found) == count:
            break
        try:
            found[name] = _photo(root, name, side)
        except DataError as error:
            unread.append(error)
    return found


def _photo(root: Path, name: str, side: int) -> dict[str, Any]:
    picture = read_rgb(root / name)
    width, height = picture.size
    picture.thumbnail((side, side))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=JPEG_QUALITY)
    address = "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
    return {"name": name, "group": _group(name), "width": width, "height": height, "picture": address}


def _pixels(image: ImageKeypoints) -> dict[str, list[float]]:
    """Returns the points as COCO counts pixels."""
    return {part: [x - PIXEL_CENTRE, y - PIXEL_CENTRE] for part, (x, y) in image.points.items()}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
