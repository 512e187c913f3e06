"""The label files of one folder, which one teacher made, and their index."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DataError, LabelError
from distill.labels.index import FILE, Index, label_files, read_index, write_index
from distill.labels.locks import FILE as LOCKS
from distill.labels.records import Columns, joined
from distill.labels.shard import Shard, open_shard, write_shard

LABELS_PER_FILE = 1 << 17
"""Labels in one file after compacting, at most."""


class LabelFolder:
    """Files of labels, read and added to. Any number of processes may do so at once.

    Opening reads the index, and those files that it does not know; values are read when they are asked for.

    Args:
        path: of the folder, which need not exist.
        fingerprint: of the teacher whose labels are wanted; None accepts whatever the folder holds.

    Raises:
        LabelError: when a file is damaged, or made by something else than ``fingerprint`` says; it names the fields.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.fingerprint = dict(fingerprint) if fingerprint is not None else None
        self.index = Index.of([])
        self._known: set[Path] = set()
        self._open: dict[Path, Shard] = {}
        self.refresh()

    def is_old(self, path: Path) -> bool:
        """Returns whether a file is of the previous format, and was converted when it was opened."""
        return self._shard(path).converted

    def refresh(self) -> None:
        """Reads which files other processes wrote or removed."""
        present = label_files(self.path)
        if not self._known:
            self._use_index(present)
        gone = self._known - set(present)
        if gone:
            self.index = self.index.without(gone)
            self._known -= gone
        self._add([path for path in present if path not in self._known])

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns places (P,) in the index of the first of each column of ``keys`` (K, P) that is there, else -1."""
        places = self.index.find(keys)
        return places[(places >= 0).argmax(0), np.arange(keys.shape[1])]

    def read(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Columns]]:
        """Yields the records at ``places`` in the index, file by file, and which of ``places`` they are for.

        Raises:
            LabelError: when a label is not as it was written.
        """
        files = self.index.file[places]
        for number in np.unique(files).tolist():
            members = (files == number).nonzero()[0]
            yield members, self._shard(self.index.files[number]).read(self.index.row[places[members]])

    def write(self, parts: Iterable[Columns]) -> list[Path]:
        """Writes each of ``parts`` to a file of its own; returns their paths.

        Raises:
            LabelError: when the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            written = [write_shard(self.path, part, self.fingerprint or {}) for part in parts]
        except (OSError, DataError) as error:
            raise self.cannot_write(error) from error
        self._add([path for path in written if path not in self._known])
        return written

    def write_index(self) -> None:
        """Writes the index, so that the folder opens fast; one file alone needs none.

        Raises:
            LabelError: when the folder cannot be written to.
        """
        self.refresh()
        try:
            if len(self.index.files) > 1:
                write_index(self.path, self.index, self.fingerprint or {})
            else:
                (self.path / FILE).unlink(missing_ok=True)
        except (OSError, DataError) as error:
            raise self.cannot_write(error) from error

    def compact(self) -> None:
        """Writes all labels to few files, each label once, and removes the others. No other process may write then."""
        self.refresh()
        if not self._known:
            return
        first = np.concatenate([[True], self.index.key[1:] != self.index.key[:-1]]).nonzero()[0]
        old, parts = set(self._known), [columns for _, columns in self.read(first)]
        sizes = sorted({part.heatmap.shape[1:] for part in parts})
        wholes = [joined(part for part in parts if part.heatmap.shape[1:] == size) for size in sizes]
        new = [w.take(slice(at, at + LABELS_PER_FILE)) for w in wholes for at in range(0, len(w), LABELS_PER_FILE)]
        gone = old - set(self.write(new))
        # It names files that go; a command that is stopped below leaves none that is wrong.
        (self.path / FILE).unlink(missing_ok=True)
        for path in gone:
            path.unlink()
        (self.path / LOCKS).unlink(missing_ok=True)
        self.write_index()

    def _use_index(self, present: Mapping[Path, int]) -> None:
        index, fingerprint, sizes = read_index(self.path)
        for path, size in sizes.items():
            if present.get(path, size) != size:
                raise LabelError(
                    f"Expected {size} bytes of labels in {path} but it has {present[path]}; python -m distill label "
                    f"repair labels.dir={self.path} sets it aside, and the labels in it are made again."
                )
        self.index = index.without({path for path in sizes if path not in present})
        if self.index.files:
            self._accept(fingerprint, FILE)
        self._known = set(self.index.files)

    def _add(self, paths: list[Path]) -> None:
        if not paths:
            return
        self.index = self.index.joined(Index.of([self._shard(path) for path in paths]))
        self._known |= set(paths)

    def _shard(self, path: Path) -> Shard:
        if path not in self._open:
            shard = open_shard(path)
            self._accept(shard.fingerprint, path.name)
            self._open[path] = shard
        return self._open[path]

    def _accept(self, fingerprint: dict[str, str], name: str) -> None:
        if self.fingerprint is None:
            self.fingerprint = fingerprint
        differing = mismatch(fingerprint, self.fingerprint)
        if differing:
            raise LabelError(
                f"Expected labels made by the present teacher in {self.path} but {name} differs: {differing}; "
                "set these back, or choose another folder with labels.dir."
            )

    def cannot_write(self, error: Exception) -> LabelError:
        """Returns the :class:`LabelError` to raise when writing to this folder failed with ``error``."""
        return LabelError(f"Expected to write labels to {self.path} but got: {error}; make room or set labels.dir.")

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the open files, which another process opens itself."""
        return self.__dict__ | {"_open": {}}


def check_folder(folder: Path) -> None:
    """Raises a :class:`LabelError` when there is no folder of labels at ``folder``, or it holds no file of labels."""
    if not folder.is_dir():
        raise LabelError(f"Expected a folder of labels but found none at {folder}; set labels.dir.")
    if not label_files(folder) and not (folder / FILE).exists():
        raise LabelError(f"Expected labels in {folder} but found none; set labels.dir.")


def mismatch(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Returns the fields in which two fingerprints differ, as text: "steps (50 in the store, 100 asked for)"."""
    names = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    return ", ".join(f"{name} ({stored.get(name)} in the store, {wanted.get(name)} asked for)" for name in names)
