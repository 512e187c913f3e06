"""One file of labels: written once, by one process, and never changed.

A safetensors file with the columns of :class:`distill.labels.records.Columns`, the checksum of each record as uint32,
and one entry of metadata, ``distill``: JSON with the format, the images and the fingerprint of what made the labels. The
file is named after the digest of its bytes, so that a flipped bit anywhere shows, and the same labels make the same file.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distill.core.errors import LabelError
from distill.labels.records import ARRAYS, Columns, Image

FORMAT = "distill-labels-2"
SUFFIX = ".safetensors"
UNFINISHED = ".unfinished"
ADVICE = "python -m distill label repair sets it aside, and the labels in it are made again"


@dataclass(frozen=True)
class Shard:
    """A file of labels that is open: its values are read from the disk when they are looked at.

    Attributes:
        path: of the file.
        fingerprint: of what made the labels.
        columns: the records.
        checksum: (R,) uint32, what :meth:`Columns.checksums` was when they were written.
    """

    path: Path
    fingerprint: dict[str, str]
    columns: Columns
    checksum: NDArray[np.uint32]

    def damaged(self, rows: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.bool_]:
        """Returns which of the records at ``rows`` are not as they were written."""
        return self.columns.take(rows).checksums() != self.checksum[rows]

    def read(self, rows: NDArray[np.integer]) -> Columns:
        """Returns the records at ``rows``, in memory.

        Raises:
            LabelError: when one is not as it was written.
        """
        columns = self.columns.take(rows)
        damaged = (columns.checksums() != self.checksum[rows]).nonzero()[0]
        if len(damaged):
            raise LabelError(
                f"Expected labels in {self.path} as they were written but {len(damaged)} are damaged, such as of "
                f"{columns.describe(int(damaged[0]))}; {ADVICE}."
            )
        return columns


def write_shard(folder: Path, columns: Columns, fingerprint: Mapping[str, str]) -> Path:
    """Writes ``columns`` to a new file in ``folder`` that appears whole or not at all; returns its path.

    Raises:
        OSError: when that cannot be done; nothing is left behind.
    """
    about = {"format": FORMAT, "fingerprint": dict(sorted(fingerprint.items())), "images": columns.images}
    arrays = {name: np.ascontiguousarray(getattr(columns, name)) for name in ARRAYS}
    # One entry of metadata: safetensors writes several in random order, and the same labels would make other bytes.
    content = save(arrays | {"checksum": columns.checksums()}, {"distill": json.dumps(about, ensure_ascii=False)})
    path = folder / f"{digest(content)}{SUFFIX}"
    write_whole(path, content)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there, whole and on the disk, when this returns, and not at all when it is interrupted.

    While it is written it has another name and is locked, so that others can tell it from what a killed process left.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name itself may be lost when the power fails
    finally:
        os.close(folder)


def digest(content: bytes) -> str:
    """Returns 32 hexadecimal digits that name ``content``."""
    return blake2b(content, digest_size=16).hexdigest()


def open_shard(path: Path) -> Shard:
    """Opens a file of labels.

    Raises:
        LabelError: when it is cut, not a file of labels, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:  # as torch maps files into memory, where numpy would read them
            about = json.loads((file.metadata() or {}).get("distill", "{}"))
            names = set(file.keys())
            if about.get("format") != FORMAT or names != {*ARRAYS, "checksum"}:
                found = about.get("format") or (file.metadata() or {}).get("format")
                raise LabelError(f"Expected labels of format {FORMAT} in {path} but its format is {found!r}; {ADVICE}.")
            arrays = {name: file.get_tensor(name).numpy() for name in names}
        images = [Image(name, label, (height, width)) for name, label, (height, width) in about["images"]]
        checksum = arrays.pop("checksum")
        shard = Shard(path, dict(about["fingerprint"]), Columns(images, **arrays), checksum)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabelError(f"Expected whole labels in {path} but it cannot be read ({error}); {ADVICE}.") from error
    _check_shapes(shard)
    return shard


def _check_shapes(shard: Shard) -> None:
    columns, count = shard.columns, len(shard.checksum)
    right = {"src": (), "trg": (), "point": (2,), "trg_kps": (2,), "confidence": ()}
    wrong = [name for name, shape in right.items() if getattr(columns, name).shape != (count, *shape)]
    if wrong or columns.heatmap.ndim != 3 or len(columns.heatmap) != count:
        raise LabelError(
            f"Expected columns of {count} labels in {shard.path} but {wrong or 'heatmap'} differ; {ADVICE}."
        )
    for name in ("src", "trg"):
        numbers = getattr(columns, name)
        if count and not (numbers.min() >= 0 and numbers.max() < len(columns.images)):
            raise LabelError(f"Expected images of the list in {shard.path} but {name} counts others; {ADVICE}.")
