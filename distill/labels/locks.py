"""Who works on what, between processes that write to one folder of labels.

A claim is a lock on one byte of the file ``.claims``: the byte's number is what is claimed. The operating system lets go
of it when the process ends, however it ends, so that nothing is left to clear up after a kill.
"""

import errno
import fcntl
from hashlib import blake2b
from pathlib import Path

from distill.core.errors import LabelError

FILE = ".claims"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Locks:
    """The claims of this process in one folder. Two of these in one process do not exclude each other.

    Args:
        folder: made if need be.

    Raises:
        LabelError: when the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / FILE, "ab")  # noqa: SIM115 - closed with the claims
        except OSError as error:
            raise LabelError(f"Expected to write labels to {folder} but got: {error}; set labels.dir.") from error

    def take(self, name: str, wait: bool = False) -> bool:
        """Locks what ``name`` stands for; returns whether that succeeded.

        Args:
            name: what is claimed, such as an image's fingerprint.
            wait: whether to wait for the process that has it. Only for one that has no claims itself.

        Raises:
            LabelError: when the file system knows no locks.
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
        """Lets go of all claims."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of all claims for good."""
        self._file.close()
