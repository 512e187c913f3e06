"""Reading photographs, with their points brought along to the size that matchers are given."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from distill.data.pairs import AnnotatedImage
from distill.errors import ConfigError, DataError

SMALLEST_SIZE = 16


@dataclass(frozen=True)
class Photograph:
    """One image file, resized to a square; the ratio of the sides is not kept.

    Attributes:
        image: (3, S, S) float in [0, 1].
        original_size: height, width before resizing.
        hash: fingerprint of the resized content.
    """

    image: Tensor
    original_size: tuple[int, int]
    hash: str

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
        scale = self.image.shape[-1] / np.array([width, height])
        return AnnotatedImage(
            image=self.image,
            keypoints=torch.from_numpy(points * scale).float(),
            visible=torch.from_numpy(visible),
            bbox=torch.from_numpy(bbox * np.tile(scale, 2)).float(),
            original_size=self.original_size,
            category=category,
            id=name,
            hash=self.hash,
        )


def read_photograph(path: Path, size: int) -> Photograph:
    """Reads an image file and resizes it to ``size`` px a side.

    Raises:
        DataError: when the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(
            f"Expected a photograph at {path} but it cannot be read ({error}); restore or remove it."
        ) from error
    pixels = np.asarray(resized).copy()
    return Photograph(
        image=torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
        original_size=(height, width),
        hash=hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest(),
    )


def check_size(size: int) -> None:
    """Raises a :class:`ConfigError` for a side in pixels that no matcher can use."""
    if size < SMALLEST_SIZE:
        raise ConfigError(f"Expected data.size of at least {SMALLEST_SIZE} px but got {size}.")
