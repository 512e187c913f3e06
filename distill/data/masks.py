"""Masks of the objects in photographs: alpha channels, or image files in a folder beside the photographs.

The mask of ``<any folder>/cat/a.jpg`` is ``<folder of masks>/cat/a.png``: the file of the same name in the sub-folder of the
same name. Where photographs lie in no sub-folders, masks do neither.
A pixel belongs to the object where its value is at least half of the largest one in the file; so masks of 0 and
1, of 0 and 255, and those averaged over several annotators are read alike, whatever their depth. Of a file with a palette
every colour but the first belongs to the object, of a transparent file what is opaque. A mask may be smaller or larger than
its photograph, at the same ratio of the sides. Of a transparent photograph the object is what is at least half opaque.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError
from distill.data.images import read_alpha, read_levels

SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")
"""Endings that a file of a mask may have; the first that is there is read."""


def read_mask(
    photograph: Path,
    size: tuple[int, int],
    folder: Path | None = None,
    exif_orientation: bool = True,
    sub_folder: str | None = None,
) -> NDArray[np.bool_]:
    """Returns (h, w), where the object is in a photograph.

    Args:
        photograph: the image file.
        size: height, width of the photograph, px.
        folder: of masks; None for the alpha channel of the photograph.
        exif_orientation: whether the orientation in a file's metadata is applied.
        sub_folder: of ``folder``, where the mask is; None for that of the photograph's own folder's name.

    Raises:
        DataError: when there is no mask, it is of another ratio than the photograph, or nothing or all belongs to the
            object of an alpha channel; naming the file.
    """
    if folder is None:
        return _of_alpha(photograph, exif_orientation)
    path = find_mask(photograph, folder, sub_folder)
    levels = read_levels(path, exif_orientation)
    _check_ratio(path, levels.shape, photograph, size)
    return _foreground(path, levels)


def find_mask(photograph: Path, folder: Path, sub_folder: str | None = None) -> Path:
    """Returns the file of a photograph's mask in a folder of masks.

    Raises:
        DataError: when there is none.
    """
    stem = folder / (photograph.parent.name if sub_folder is None else sub_folder) / photograph.stem
    for suffix in SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    raise DataError(
        f"Expected a mask of {photograph} in {stem}.png but there is none; add it, correct points.masks, or choose "
        "points.within=box."
    )


def lookup(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns (N,), whether points (N, 2), x, y in fractions of the sides, lie in a mask (h, w)."""
    height, width = mask.shape
    column, row = np.minimum((points * (width, height)).astype(np.int64), (width - 1, height - 1)).T
    return mask[row, column]


def _of_alpha(photograph: Path, exif_orientation: bool) -> NDArray[np.bool_]:
    alpha = read_alpha(photograph, exif_orientation)
    mask = None if alpha is None else alpha >= 128
    if mask is None or not mask.any() or mask.all():
        found = (
            "it has no transparency" if mask is None else "all of it is opaque" if mask.any() else "nothing is opaque"
        )
        raise DataError(
            f"Expected a mask of the object in the alpha channel of {photograph} but {found}; name a folder of masks in "
            "points.masks, or choose points.within=box."
        )
    return mask


def _foreground(path: Path, levels: NDArray[np.number]) -> NDArray[np.bool_]:
    largest = levels.max().item()
    if largest <= 0:
        raise DataError(f"Expected a mask of the object in {path} but all of it is background; correct or remove it.")
    return levels >= largest / 2


def _check_ratio(path: Path, mask: tuple[int, ...], photograph: Path, size: tuple[int, int]) -> None:
    """Raises a :class:`DataError` unless a mask (h, w) has the ratio of a photograph, to the pixel of the smaller one."""
    small, large = sorted((mask, size))
    scale = max(large) / max(small)
    if any(abs(side * scale - whole) > scale for side, whole in zip(small, large, strict=True)):
        raise DataError(
            f"Expected a mask of {photograph}, {size[1]} x {size[0]} px, at the same ratio of the sides but {path} has "
            f"{mask[1]} x {mask[0]} px; correct it."
        )
