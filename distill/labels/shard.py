"""One file of labels: written once, by one process, and never changed.

A safetensors file with the columns of :class:`distill.labels.records.Columns`, the checksum of each record as uint32,
and one entry of metadata, ``distill``: JSON with the format, the images and the fingerprint of what made the labels. The
file is named after the digest of its bytes, so that a flipped bit anywhere shows, and the same labels make the same file.
"""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distill.core.errors import LabelError
from distill.core.files import check_permission, replacing
from distill.labels.metadata import parse
from distill.labels.records import ARRAYS, Columns, Image

FORMAT = "distill-labels-3"
BY_PIXELS = "distill-labels-2"
"""The previous format: points in px, images named by their resized content."""
SUFFIX = ".safetensors"
LONGEST_SIDE = 2**31 - 1
"""px; the formats that labels are exported to have no room for more."""
ADVICE = "python -m distill label repair sets it aside, and the labels in it are made again"


@dataclass(frozen=True)
class Shard:
    """A file of labels that is open: its values are read from the disk when they are looked at.

    Attributes:
        path: of the file.
        fingerprint: of what made the labels.
        columns: the records.
        checksum: (R,) uint32, what :meth:`Columns.checksums` was when they were written.
        converted: whether the file is of the previous format, and ``columns`` were converted.
        verified: (R,) bool, which records have been compared with their checksums since the file was opened.
    """

    path: Path
    fingerprint: dict[str, str]
    columns: Columns
    checksum: NDArray[np.uint32]
    converted: bool = False
    verified: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verified", np.zeros(len(self.checksum), bool))

    def damaged(self, rows: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.bool_]:
        """Returns which of the records at ``rows`` are not as they were written."""
        return self.columns.take(rows).checksums() != self.checksum[rows]

    def read(self, rows: NDArray[np.integer]) -> Columns:
        """Returns the records at ``rows``, in memory; each is verified when it is read for the first time.

        Raises:
            LabelError: when one is not as it was written, or there is no such row.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.checksum):
            raise LabelError(
                f"Expected an index that fits its files but it names rows that {self.path} has not; make it again with: "
                f"python -m distill label repair labels.dir={self.path.parent}"
            )
        columns = self.columns.take(rows)
        new = (~self.verified[rows]).nonzero()[0]
        damaged = new[self.damaged(rows[new])] if len(new) else new
        self.verified[rows] = True
        self.verified[rows[damaged]] = False
        if len(damaged):
            raise LabelError(
                f"Expected labels in {self.path} as they were written but {len(damaged)} are damaged, such as of "
                f"{columns.describe(int(damaged[0]))}; {ADVICE}."
            )
        return columns


def write_shard(folder: Path, columns: Columns, fingerprint: Mapping[str, str]) -> Path:
    """Writes ``columns`` to a new file in ``folder`` that appears whole or not at all; returns its path.

    Raises:
        OSError, DataError: when that cannot be done; nothing is left behind.
    """
    about = {"format": FORMAT, "fingerprint": dict(sorted(fingerprint.items())), "images": columns.images}
    arrays = {name: np.ascontiguousarray(getattr(columns, name)) for name in ARRAYS}
    # One entry of metadata: safetensors writes several in random order, and the same labels would make other bytes.
    content = save(arrays | {"checksum": columns.checksums()}, {"distill": json.dumps(about, ensure_ascii=False)})
    path = folder / f"{digest(content)}{SUFFIX}"
    write_whole(path, content)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically, and flushes it to the disk before it returns.

    While it is written it has a hidden name and is locked, so that others can tell it from what a killed process left.

    Raises:
        OSError: when that cannot be done.
        DataError: when its folder cannot be made or written to.
    """
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name itself may be lost when the power fails
    finally:
        os.close(folder)


def digest(content: bytes) -> str:
    """Returns 32 hexadecimal digits that name ``content``."""
    return blake2b(content, digest_size=16).hexdigest()


def is_label_name(path: Path) -> bool:
    """Returns whether a file is named as :func:`write_shard` names it, by a digest."""
    return re.fullmatch("[0-9a-f]{32}", path.stem) is not None


def open_shard(path: Path) -> Shard:
    """Opens a file of labels. One of the previous format is converted in memory where its images are rendered scenes.

    Raises:
        LabelError: when it is cut, not a file of labels, of another format, or of photographs in the previous format.
        PermissionError: when this user may not read it.
    """
    check_permission(path)
    try:
        with safe_open(path, "pt") as file:  # as torch maps files into memory, where numpy would read them
            text = (file.metadata() or {}).get("distill")
            try:
                about = parse(text, (FORMAT, BY_PIXELS))
            except ValueError as error:
                raise LabelError(f"Expected labels of format {FORMAT} in {path} but {error}; {ADVICE}.") from error
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - no dictionary
        images = [_image(*image) for image in about["images"]]
        if about["format"] == BY_PIXELS:
            arrays["src_point"], arrays["trg_point"] = arrays.pop("point"), arrays.pop("trg_kps")
        checksum = arrays.pop("checksum")
        _check_arrays(path, arrays | {"checksum": checksum}, len(images))
        shard = Shard(path, about["fingerprint"], Columns(images, **arrays), checksum)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabelError(f"Expected whole labels in {path} but it cannot be read ({error}); {ADVICE}.") from error
    return _converted(shard) if about["format"] == BY_PIXELS else shard


def _image(name: object, label: object, size: object) -> Image:
    """Returns an image as metadata names it.

    Raises:
        ValueError: when it is something else.
    """
    sides = size if isinstance(size, list) else []
    whole = [type(side) for side in sides] == [int, int] and all(1 <= side <= LONGEST_SIDE for side in sides)
    if not (isinstance(name, str) and isinstance(label, str) and whole):
        raise ValueError("its list of images holds something else")
    return Image(name, label, (sides[0], sides[1]))


def _check_arrays(path: Path, arrays: Mapping[str, NDArray], n_images: int) -> None:
    """Raises a :class:`LabelError` unless the columns are those of a file of labels."""
    wanted = {"src": "i4", "trg": "i4", "src_point": "f4", "trg_point": "f4", "confidence": "f4", "heatmap": "f2"}
    wanted |= {"checksum": "u4"}
    sides = arrays["heatmap"].shape[1:] if "heatmap" in arrays else ()
    shapes = {"src_point": (2,), "trg_point": (2,), "heatmap": sides if len(sides) == 2 and min(sides) > 0 else (1, 1)}
    count = len(arrays["checksum"])
    wrong = [
        name
        for name in sorted(wanted.keys() | arrays.keys())
        if name not in wanted
        or name not in arrays
        or arrays[name].dtype != wanted[name]
        or arrays[name].shape != (count, *shapes.get(name, ()))
    ]
    if wrong:
        raise LabelError(f"Expected columns of {count} labels in {path} but {wrong} differ; {ADVICE}.")
    for name in ("src", "trg"):
        if count and not (arrays[name].min() >= 0 and arrays[name].max() < n_images):
            raise LabelError(f"Expected images of the list in {path} but {name} counts others; {ADVICE}.")


def _converted(shard: Shard) -> Shard:
    """Returns labels of rendered scenes in the previous format as they are stored now.

    There, points are in px of the rendering, whose side the image's fingerprint names, as in "shapes-2/.../000001@128".

    Raises:
        LabelError: when they are of photographs, whose resized content does not say which photographs these were.
    """
    named = [re.fullmatch(r"(shapes-.+)@(\d+)", image.hash) for image in shard.columns.images]
    pairs = zip(named, shard.columns.images, strict=True)
    scenes = [Image(match[1], image.name, image.size) for match, image in pairs if match]
    if len(scenes) < len(named):
        raise LabelError(
            f"Expected labels of original images in {shard.path} but its format, {BY_PIXELS}, names photographs by their "
            "resized content; make them again in another labels.dir."
        )
    columns, bad = shard.columns, shard.damaged()
    sizes = np.array([image.size[::-1] for image in scenes], np.float32).reshape(-1, 2)
    columns = replace(
        columns,
        images=scenes,
        src_point=columns.src_point / sizes[columns.src],
        trg_point=columns.trg_point / sizes[columns.trg],
    )
    return Shard(shard.path, shard.fingerprint, columns, columns.checksums() ^ bad, converted=True)
