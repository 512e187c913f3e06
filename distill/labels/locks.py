"""Locks between processes that label into one folder.

A lock is a POSIX lock of one byte of the file ``.locks``; the name that is locked decides which byte. The operating
system releases it when the process ends, however it ends. The ``filelock`` package is not used: it needs a file and an open
descriptor for each lock, of which a process holds thousands between two writes, and on a file system without locks it
falls back to files that a killed process leaves behind.
"""

import errno
import fcntl
from hashlib import blake2b
from pathlib import Path

from distill.core.errors import LabelError

FILE = ".locks"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Locks:
    """The locks of this process in one folder. Two objects in one process do not exclude each other.

    Args:
        folder: made if need be.

    Raises:
        LabelError: when the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / FILE, "ab")  # noqa: SIM115 - closed with the locks
        except OSError as error:
            raise LabelError(f"Expected to write labels to {folder} but got: {error}; set labels.dir.") from error

    def take(self, name: str, wait: bool = False) -> bool:
        """Locks ``name``; returns whether that succeeded.

        Args:
            name: such as an image's fingerprint.
            wait: whether to wait for the process that has the lock. The caller must hold none itself: two processes that
                hold locks and wait for each other's would never go on.

        Raises:
            LabelError: when the file system has no locks.
        """
        byte = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 2
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in NO_LOCKS:
                raise
            raise LabelError(
                f"Expected file locks in {self.folder} but its file system has none ({error}); give each process a "
                "labels.dir of its own and join them with: python -m distill label merge"
            ) from error
        return True

    def release(self) -> None:
        """Releases all locks."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Releases all locks and closes the file."""
        self._file.close()
