"""Matches as pictures."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import make_grid

CAPTION_HEIGHT = 18
FARTHEST = 10.0
"""Sides of the image that a point is drawn from its corner, at most: Pillow draws nothing at coordinates of any size."""


def to_picture(image: Tensor, side: int) -> Image.Image:
    """Returns ``image`` (3, H, W) in [0, 1] as a picture whose longer side is ``side`` px."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    factor = side / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def match_panel(
    src_img: Tensor,
    trg_img: Tensor,
    src_kps: NDArray,
    answers: Mapping[str, NDArray],
    truth: NDArray | None = None,
    side: int = 256,
) -> Image.Image:
    """Draws the source with its numbered points, and the target once for each answer.

    Where the truth is known a line leads from each answer to it.

    Args:
        src_img: (3, H, W) in [0, 1].
        trg_img: (3, H, W) in [0, 1].
        src_kps: (N, 2) x, y in pixels of ``src_img``.
        answers: by caption, (N, 2) x, y in pixels of ``trg_img``.
        truth: (N, 2), the same.
        side: longer side of each picture, px.
    """
    source = draw_points(src_img, src_kps, side)
    columns = {"source": source} | {name: draw_points(trg_img, points, side, truth) for name, points in answers.items()}
    height = max(picture.height for picture in columns.values()) + CAPTION_HEIGHT
    panel = Image.new("RGB", (sum(picture.width for picture in columns.values()), height), "white")
    draw, left = ImageDraw.Draw(panel), 0
    for name, picture in columns.items():
        draw.text((left + 4, 3), name, fill="black")
        panel.paste(picture, (left, CAPTION_HEIGHT))
        left += picture.width
    return panel


def draw_points(image: Tensor, points: NDArray, side: int, truth: NDArray | None = None) -> Image.Image:
    """Returns a picture of ``image`` (3, H, W) with numbered ``points`` (N, 2), x, y px, and lines to the ``truth``.

    Coordinates beyond :data:`FARTHEST` sides of the image are drawn as if they were there, which is outside of the picture.
    """
    picture = to_picture(image, side)
    draw = ImageDraw.Draw(picture)
    size, original = np.array(picture.size), np.array([image.shape[-1], image.shape[-2]])
    places, goals = (
        np.clip(np.asarray(given) / original, -FARTHEST, FARTHEST) * size
        for given in (points, points if truth is None else truth)
    )
    for number, (x, y) in enumerate(places):
        colour = point_colour(number, len(places))
        if truth is not None:
            draw.line([(x, y), tuple(goals[number])], fill=colour, width=2)
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour, outline="white")
        draw.text((x + 6, y - 12), str(number + 1), fill="white", stroke_width=1, stroke_fill="black")
    return picture


def point_colour(number: int, count: int) -> tuple[int, int, int]:
    """Returns the colour of point ``number`` of ``count``, evenly spread over the hues."""
    red, green, blue = colorsys.hsv_to_rgb(number / max(1, count), 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def stack(panels: Sequence[Image.Image]) -> Image.Image:
    """Returns the panels one below the other."""
    width, height = max(panel.width for panel in panels), sum(panel.height for panel in panels)
    sheet, top = Image.new("RGB", (width, height), "white"), 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


def contact_sheet(
    images: Sequence[Tensor], points: Sequence[NDArray], columns: int = 6, side: int = 160
) -> Image.Image:
    """Returns images (3, H, W) with their points (N, 2), x, y px, as a sheet of ``columns`` columns.

    Each image is fitted into a square of ``side`` px, white where its shape leaves room.
    """
    tiles = []
    for image, kps in zip(images, points, strict=True):
        picture, tile = draw_points(image, kps, side), Image.new("RGB", (side, side), "white")
        tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        tiles.append(to_tensor(tile))
    return to_pil_image(make_grid(tiles, nrow=columns, padding=4, pad_value=1.0))
