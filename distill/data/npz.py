"""``.npz`` files whose arrays are looked at before memory is taken for them.

An ``.npz`` file is a ZIP archive of arrays, and a few kilobytes of it can unpack to any size. Here the header of each array,
which says its shape and type, is read first and held against the size that the archive gives; what does not belong is refused
before it is unpacked. Nothing is unpickled.
"""

import io
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises that is missing, damaged or something else."""

HEADER_BYTES = 4096
"""Bytes of a header, at most; numpy's have about 100."""
MOST = 1000
"""Arrays of a file, at most."""


class Header(NamedTuple):
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize


class NpzFile:
    """An ``.npz`` file that is open for reading. A context manager.

    Args:
        path: of the file.

    Attributes:
        names: of what it holds, in the file's order.

    Raises:
        ValueError: when it holds too much, or two arrays of one name.
        OSError, zipfile.BadZipFile: when the file is missing, or no archive.
    """

    def __init__(self, path: str | Path) -> None:
        with ExitStack() as on_error:
            self._archive = on_error.enter_context(zipfile.ZipFile(path))
            self.names = [name.removesuffix(".npy") for name in self._archive.namelist()]
            if len(self.names) > MOST or len(set(self.names)) < len(self.names):
                raise ValueError(f"it holds more than {MOST} arrays, or two of one name")
            on_error.pop_all()

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    def headers(self, names: Iterable[str], largest: int) -> dict[str, Header]:
        """Returns the headers of the arrays ``names``.

        Raises:
            KeyError: when one is not there.
            ValueError: when one is no array of plain values, or not as large as its header says, or they have more than
                ``largest`` bytes together.
        """
        found = {name: self._header(name) for name in names}
        total = sum(header.nbytes for header in found.values())
        if total > largest:
            raise ValueError(f"its arrays grow to {total / 2**20:.0f} MiB, more than {largest / 2**20:.0f}")
        return found

    def read(self, name: str) -> NDArray:
        """Returns an array, whose header was looked at."""
        with self._archive.open(f"{name}.npy") as member:
            return npy.read_array(member, allow_pickle=False)

    def _header(self, name: str) -> Header:
        member = self._archive.getinfo(f"{name}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise ValueError(f"its array {name} is not compressed as numpy does it")  # other methods know no limit
        with self._archive.open(member) as file:
            start = io.BytesIO(file.read(HEADER_BYTES))
        version = npy.read_magic(start)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"its array {name} has version {version} of the format, not 1.0 or 2.0")
        try:
            shape, _, dtype = read(start)
        except (SyntaxError, TokenError, RecursionError, AttributeError) as error:  # of numpy's parser
            raise ValueError(f"its array {name} has a header that cannot be read") from error
        header = Header(shape, dtype)
        if dtype.hasobject:
            raise ValueError(f"its array {name} holds objects. Object arrays cannot be loaded, as they may run code")
        if dtype.kind not in "biufU" or any(side < 0 for side in shape):
            raise ValueError(f"its array {name} holds {str(dtype)[:80]} and not plain values")
        if start.tell() + header.nbytes != member.file_size:
            raise ValueError(f"its array {name} takes {member.file_size} bytes, and its shape {shape} {header.nbytes}")
        return header
