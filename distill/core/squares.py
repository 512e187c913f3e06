"""How an image is brought to the square that a student sees: its place there, by plain numbers, without torch."""

RESIZES = ("squash", "letterbox")
PADDING_GREY = 124  # about the mean of photographs


def letterbox(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1, in px, of where an image of ``size`` (H, W) lies, whole and undistorted, in a square.

    The longer side fills the square, the shorter one is rounded to whole pixels, at least one, and centred; an odd
    remainder goes to the right or bottom.

    Args:
        size: height, width of the image, px.
        side: of the square, px.
    """
    height, width = size
    w, h = (max(1, round(side * length / max(size))) for length in (width, height))
    x0, y0 = (side - w) // 2, (side - h) // 2
    return x0, y0, x0 + w, y0 + h


def content_box(size: tuple[int, int], side: int, resize: str) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1, px, the part of the square that is not padding: all of it for "squash"; see :func:`letterbox`."""
    return letterbox(size, side) if resize == "letterbox" else (0, 0, side, side)
