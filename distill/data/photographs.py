"""Photographs at one size: decoded once, their points and boxes scaled with them."""

import hashlib
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.squares import PADDING_GREY, RESIZES, content_box
from distill.data.images import read_rgb
from distill.data.pairs import AnnotatedImage, ImageView

SMALLEST_SIZE = 16


@dataclass(frozen=True)
class Photograph:
    """One image file, brought to a square.

    Attributes:
        image: (3, S, S) float in [0, 1].
        original_size: height, width before resizing.
        content: x0, y0, x1, y1 px, the part of ``image`` that is not padding.
        hash: fingerprint of the resized content.
        original_hash: see :func:`original_hash`.
    """

    image: Tensor
    original_size: tuple[int, int]
    content: tuple[float, float, float, float]
    hash: str
    original_hash: str

    def annotated(
        self,
        points: NDArray[np.float64],
        visible: NDArray[np.bool_],
        bbox: NDArray[np.float64],
        category: str,
        name: str,
    ) -> AnnotatedImage:
        """Returns the photograph with what a benchmark says of it.

        Args:
            points: (K, 2) x, y in the original pixels.
            visible: (K,), which of them are annotated.
            bbox: (4,) x0, y0, x1, y1 in the original pixels.
            category: what the object is.
            name: of the photograph, for people.
        """
        height, width = self.original_size
        x0, y0, x1, y1 = self.content
        scale = np.array([x1 - x0, y1 - y0]) / np.array([width, height])
        return AnnotatedImage(
            image=self.image,
            keypoints=torch.from_numpy(points * scale + (x0, y0)).float(),
            visible=torch.from_numpy(visible),
            bbox=torch.from_numpy(bbox * np.tile(scale, 2) + (x0, y0, x0, y0)).float(),
            original_size=self.original_size,
            category=category,
            id=name,
            hash=self.hash,
            content=self.content,
            original_hash=self.original_hash,
        )


class PhotographReader:
    """Reads image files, brings them to one size, and keeps the pixels as far as the memory allows.

    The memory is shared with the processes that a data loader forks, so that a photograph is decoded once a run and not
    once a process. Photographs beyond that are decoded at every read.

    Args:
        paths: of the files that will be asked for.
        size: side of the squares, px.
        resize: "squash" does not keep the ratio of the sides; "letterbox" does, and pads with grey.
        cache_mib: how much memory the pixels may take.
        exif_orientation: whether the orientation in the metadata is applied.

    Raises:
        ConfigError: for a size below 16, an unknown way to resize, or a negative amount of memory.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        size: int,
        resize: str = "squash",
        cache_mib: int = 2048,
        exif_orientation: bool = False,
    ) -> None:
        check_size(size)
        check_resize(resize, "data.resize")
        if cache_mib < 0:
            raise ConfigError(f"Expected data.cache_mib of at least 0 but got {cache_mib}.")
        self.size, self.resize, self.exif_orientation = size, resize, exif_orientation
        capacity = cache_mib * 2**20 // (3 * size * size)
        unique = list(dict.fromkeys(paths))[:capacity]
        self._places = {path: number for number, path in enumerate(unique)}
        self._allocate()

    def __call__(self, path: Path) -> Photograph:
        """Returns the photograph.

        Raises:
            DataError: see :func:`distill.data.images.read_image`.
        """
        place = self._places.get(path)
        if place is not None and self._heads[place]["filled"]:
            head = self._heads[place]
            return self._finished(self._pixels[place], tuple(head["size"].tolist()), head["original"].decode())
        pixels, size = decode(path, self.size, self.resize, self.exif_orientation)
        original = original_hash(path, self.exif_orientation)
        if place is not None:
            head = self._heads[place]
            self._pixels[place], head["size"], head["original"] = pixels, size, original
            head["filled"] = True
        return self._finished(pixels, size, original)

    @property
    def decoded(self) -> int:
        """How many photographs are kept."""
        return int(self._heads["filled"].sum())

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the pixels behind where processes do not share memory."""
        return {name: value for name, value in vars(self).items() if name not in ("_pixels", "_heads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._allocate()

    def _allocate(self) -> None:
        count, side = len(self._places), self.size
        head = np.dtype([("filled", "?"), ("size", "i4", 2), ("original", "S48")])
        # Anonymous maps take no memory before they are written to, and forked processes share them.
        self._heads = np.frombuffer(mmap.mmap(-1, max(1, count * head.itemsize)), head, count)
        flat = np.frombuffer(mmap.mmap(-1, max(1, count * 3 * side * side)), np.uint8, count * 3 * side * side)
        self._pixels = flat.reshape(count, side, side, 3)

    def _finished(self, pixels: NDArray[np.uint8], size: tuple[int, int], original: str) -> Photograph:
        return Photograph(
            image=_as_tensor(pixels),
            original_size=size,
            content=_content(size, self.size, self.resize),
            hash=_digest(pixels.tobytes()),
            original_hash=original,
        )


def decode(
    path: Path, size: int, resize: str, exif_orientation: bool = False
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Returns (S, S, 3) the pixels of an image file brought to ``size`` px a side, and its height, width before.

    Raises:
        DataError: see :func:`distill.data.images.read_image`.
    """
    pixels = read_rgb(path, exif_orientation)
    width, height = pixels.size
    x0, y0, x1, y1 = content_box((height, width), size, resize)
    square = np.full((size, size, 3), PADDING_GREY, np.uint8)
    square[y0:y1, x0:x1] = np.asarray(pixels.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR))
    return square, (height, width)


def _content(original: tuple[int, int], size: int, resize: str) -> tuple[float, float, float, float]:
    """Returns x0, y0, x1, y1 px: where an image of ``original`` (H, W) lies in a square of ``size`` px a side."""
    x0, y0, x1, y1 = content_box(original, size, resize)
    return float(x0), float(y0), float(x1), float(y1)


def check_resize(resize: str | None, key: str = "resize") -> None:
    """Raises a ConfigError unless this is a way to bring images to squares; None is, which leaves it to the matcher."""
    if resize is not None and resize not in RESIZES:
        raise ConfigError(f"Expected {key} to be one of these but got {resize!r}; {nearest(str(resize), RESIZES)}.")


@lru_cache(maxsize=32)  # the pairs of one source image are labelled one after the other
def view_of(path: Path, size: int, resize: str, exif_orientation: bool) -> ImageView:
    """Returns an image file brought to a square of ``size`` px a side, decoded from the original.

    Raises:
        DataError: see :func:`distill.data.images.read_image`.
    """
    pixels, original = decode(path, size, resize, exif_orientation)
    return ImageView(_as_tensor(pixels), _digest(pixels.tobytes()), _content(original, size, resize))


def original_hash(path: Path, exif_orientation: bool) -> str:
    """Returns the fingerprint of an image file: a digest of its bytes, and whether its orientation is applied.

    A file is read again when its size or date has changed.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        found = path.stat()
        digest = _file_digest(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise DataError(f"Expected an image file but {path} cannot be read ({error}); check the path.") from error
    return f"{digest}-upright" if exif_orientation else digest


@lru_cache(maxsize=1 << 17)
def _file_digest(path: Path, changed: int, size: int) -> str:
    return _digest(path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Returns pixels (S, S, 3) as (3, S, S) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def check_size(size: int) -> None:
    """Raises a :class:`ConfigError` for a side in pixels that no matcher can use."""
    if size < SMALLEST_SIZE:
        raise ConfigError(f"Expected data.size of at least {SMALLEST_SIZE} px but got {size}.")
