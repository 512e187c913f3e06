"""Reading an image file into 8-bit RGB: the one reader of the data sets, of ``match`` and of Python.

* Orientation: the EXIF orientation is applied, so that an image is read as viewers show it; one in XMP alone, which
  viewers do not apply, is not. Benchmarks whose
  annotations ignore it switch that off, see ``exif_orientation`` of
  :class:`distill.data.photograph_pairs.PhotographPairs`. Pillow always applies the tag of TIFF files.
* Depth: 16-bit channels are divided by 257, floats in [0, 1] are multiplied by 255; both are rounded to 8 bits. Other
  floats and 32-bit integers have no known range and are refused.
* Transparency, of any kind, is composed on white.
* Animations and files with several pages: the first frame is read.
* Colour: CMYK and other models are converted to RGB as Pillow does; colour profiles are not applied.
* Formats: those of ``FORMATS`` only. Others that Pillow knows, such as EPS, start other programs.
"""

import contextlib
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from distill.core.errors import DataError, in_one_line

if TYPE_CHECKING:
    from torch import Tensor

Converted = TypeVar("Converted")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".avif", ".heic", ".heif"),
)
"""File names that an image may have; whether a file of that name can be read says :func:`readable_suffixes`."""

MIN_SIDE = 8  # px; with fewer there is nothing to match
ORIENTATION = ExifTags.Base.Orientation
TO_8_BITS = "convert it to 8 bits a channel"


def read_image(path: str | Path, exif_orientation: bool = True) -> "Tensor":
    """Returns an image file as (1, 3, H, W) float in [0, 1], RGB, as a matcher takes it.

    How orientation, depth, transparency and frames are treated is said at the top of this module.

    Args:
        path: of the file.
        exif_orientation: whether the orientation in the file's metadata is applied.

    Raises:
        DataError: naming the file, when it is missing, damaged, of another format, smaller than 8 px a side, larger
            than 179 megapixels (Pillow's limit), or of a depth whose range is not known.
    """
    import torch  # distill.export.runtime reads images where torch is not installed

    pixels = np.asarray(read_rgb(path, exif_orientation)).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def read_rgb(path: str | Path, exif_orientation: bool = True) -> Image.Image:
    """Returns an image file as a Pillow image of mode RGB; arguments and errors are those of :func:`read_image`."""
    return _read(path, exif_orientation, _to_rgb)


def read_alpha(path: str | Path, exif_orientation: bool = True) -> NDArray[np.uint8] | None:
    """Returns (H, W), how opaque an image file is, 255 for opaque; None for a file without transparency.

    Arguments and errors are those of :func:`read_image`.
    """
    alpha = _read(path, exif_orientation, _to_alpha)
    return None if alpha is None else np.asarray(alpha)


def read_levels(path: str | Path, exif_orientation: bool = True) -> NDArray[np.number]:
    """Returns (H, W), an image file as grey values of any depth and range, the way masks are written.

    Values of more than 8 bits stay as they are in the file: brought to 8 bits, the numbers of a mask's objects would be lost. Of a
    transparent image it is how opaque it is; of one with a palette 0 for the first colour and 255 for all others.
    Arguments and errors are those of :func:`read_image`, but for the range of 32-bit integers and floats, which need only be finite.
    """
    return _read(path, exif_orientation, _to_levels)


def _read(
    path: str | Path, exif_orientation: bool, convert: Callable[[Image.Image, str | None], Converted]
) -> Converted:
    """Returns what ``convert`` makes of an image file and its format."""
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("there is no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes below the limit, and of metadata that is not used
            with Image.open(path, formats=_formats()) as image:
                image.load()  # metadata may lie behind the pixels
                _drop_orientation_of_xmp(image)
                oriented = ImageOps.exif_transpose(image) if exif_orientation else image
                size, converted = oriented.size, convert(oriented, image.format)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise _unreadable(path, f"it has more than {limit:.1f} megapixels", "make it smaller") from error
    except Exception as error:  # Pillow's readers raise exceptions of many types for damaged files
        advice = TO_8_BITS if isinstance(error, _UnknownRange) else "restore or remove it"
        raise _unreadable(path, in_one_line(error, None), advice) from error
    if min(size) < MIN_SIDE:
        raise DataError(
            f"Expected an image of at least {MIN_SIDE} px a side but {path} has {size[0]} x {size[1]} px; remove it."
        )
    return converted


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns a Pillow image that is open already in mode RGB, by the rules at the top of this module.

    Args:
        image: of any mode.
        name: of it, for messages.

    Raises:
        DataError: when it is damaged, of a depth whose range is not known, or turned by an orientation in its metadata:
            whether points belong to it as it lies or as viewers show it is not known.
    """
    try:
        turned = image.getexif().get(ORIENTATION, 1)
        rgb = _to_rgb(image, image.format)
    except Exception as error:  # as in read_rgb; an image of Pillow is read when its pixels are asked for
        reason = in_one_line(error, None)
        raise DataError(f"Expected {name} as an image of 8 bits a channel but it cannot be read ({reason}).") from error
    if turned in range(2, 9):
        raise DataError(
            f"Expected {name} upright but its metadata have the orientation {turned}; call PIL.ImageOps.exif_transpose on it, "
            "or read the file with read_image."
        )
    return rgb


def read_size(path: str | Path, exif_orientation: bool = True) -> tuple[int, int]:
    """Returns height, width of an image file in px, from its header where that is enough.

    Args:
        path: of the file.
        exif_orientation: whether the orientation in the file's metadata is applied.

    Raises:
        DataError: see :func:`read_image`; a file with a sound header and damaged pixels passes.
    """
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError:
        changed = 0
    return _read_size(str(path), changed, exif_orientation)


@lru_cache(maxsize=1 << 17)
def _read_size(path: str, changed: int, exif_orientation: bool) -> tuple[int, int]:
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not used
        with Image.open(path, formats=_formats()) as image:
            # Others may hold the orientation behind the pixels, or turn the size on loading; what is wrong the reader says.
            _drop_orientation_of_xmp(image)
            if image.format in ("JPEG", "WEBP") or (image.format != "TIFF" and not exif_orientation):
                turned = exif_orientation and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
    width, height = read_rgb(path, exif_orientation).size
    return height, width


def is_text(name: str) -> bool:
    """Returns whether a file's name can be printed and written in UTF-8, which old archives' need not be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_name(name: str) -> str:
    """Returns a name that can be printed and written, whatever its bytes are."""
    return name if is_text(name) else name.encode("ascii", "backslashreplace").decode()


@cache
def readable_suffixes() -> frozenset[str]:
    """Returns those of ``SUFFIXES`` whose format the installed Pillow reads; HEIC needs the package pillow-heif."""
    formats = _formats()
    known = Image.registered_extensions()
    return frozenset(suffix for suffix in SUFFIXES if known.get(suffix) in formats and known[suffix] in Image.OPEN)


@cache
def _formats() -> tuple[str, ...]:
    """Returns those of ``FORMATS`` that can be read here."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _drop_orientation_of_xmp(image: Image.Image) -> None:
    """Removes the orientation that Pillow takes from XMP where EXIF has none; that of TIFF files is applied on loading."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    if ORIENTATION not in exif:
        image.getexif().pop(ORIENTATION, None)


class _UnknownRange(ValueError):
    """An image whose values cannot be brought to 8 bits without a guess."""


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image, file_format)
    if image.has_transparency_data:
        layers = Image.new("RGBA", image.size, "white"), _with_alpha(image)
        return Image.alpha_composite(*layers).convert("RGB")
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    """Returns an image that has transparency in mode RGBA."""
    colour = image.info.get("transparency")
    if (
        image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255
    ):  # of 16 bits; Pillow keeps 8 of the pixels
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image.convert("RGBA")


def _to_alpha(image: Image.Image, file_format: str | None) -> Image.Image | None:
    return _with_alpha(image).getchannel("A") if image.has_transparency_data else None


def _to_levels(image: Image.Image, file_format: str | None) -> NDArray[np.number]:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_levels(np.asarray(image), image.info.get("transparency"))
    alpha = _to_alpha(image, file_format)
    if alpha is not None and alpha.getextrema() != (255, 255):
        return np.asarray(alpha)
    if image.mode == "P":
        return (np.asarray(image) != 0).astype(np.uint8) * 255
    return np.asarray(image.convert("L"))


def _deep_levels(values: NDArray[np.number], transparent: object) -> NDArray[np.number]:
    if not np.isfinite(values).all():
        raise _UnknownRange("it holds NaN or infinity")
    opaque = values != transparent
    return values if opaque.all() else opaque.astype(np.uint8) * 255


def _to_8_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # so written, NaN is refused too
            raise _UnknownRange(f"its floats lie in [{low:.4g}, {high:.4g}], where [0, 1] is read")
        values = values * 255
    elif image.mode == "I" and file_format not in ("PNG", "PPM"):
        raise _UnknownRange("it holds 32-bit integers")
    else:
        transparent = values == image.info.get("transparency")
        values = np.where(transparent, 255, values / 257)
    return Image.fromarray(values.round().astype(np.uint8))


def _unreadable(path: str | Path, reason: str, advice: str) -> DataError:
    return DataError(f"Expected an image file but {path} cannot be read ({reason}); {advice}.")
