"""What tests of the web page do with it, and the pictures that they give it."""

import re
import struct
import zlib

import numpy as np
from PIL import Image, ImageFilter

READY = "html[data-ready]"


def photograph(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Returns smooth random shapes, which survive JPEG."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, channels), np.uint8).squeeze()
    image = Image.fromarray(pixels, mode if mode != "P" else None).resize(size, Image.Resampling.BICUBIC)
    return image if mode in ("L", "RGBA", "P") else image.filter(ImageFilter.GaussianBlur(1))


def choose(page, source, target) -> None:
    for place, file in (("source", source), ("target", target)):
        page.set_input_files(f"#{place} input", file)
        page.get_by_text(re.compile(f"^{re.escape(file.name)}: ")).wait_for()


def rows(page, count: int) -> list[list[str]]:
    page.wait_for_selector(f"#answers tbody tr:nth-child({count})")
    return [row.split("\t") for row in page.locator("#answers tbody").inner_text().splitlines()]


def pair_of_numbers(text: str) -> np.ndarray:
    return np.array([float(value) for value in text.split(" (")[0].split(",")])


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)  # black: a thousandth of its pixels' size
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
