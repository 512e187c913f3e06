"""Files: whether they may be read, and writing them and folders so that they appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.core.errors import DataError


def check_permission(path: str | Path) -> None:
    """Raises a PermissionError when this user may not read a file, of which safetensors says that it does not exist."""
    try:
        with open(path, "rb"):
            pass
    except PermissionError:
        raise
    except (OSError, ValueError):  # what else is wrong the reader says; the second of NUL in a path
        pass


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which replaces ``path`` on success and is removed on failure.

    The temporary path exists as an empty file and has the suffix of ``path``. The finished file has the mode that an
    ordinary file gets from the process's umask, whatever the writer made of it (safetensors writes 0600). Where ``path`` is
    a symbolic link, the file that it points to is replaced. Missing folders are made.

    Raises:
        DataError: when ``path`` is a folder, or its folder cannot be made or written to.
        OSError: when it cannot be written to its end, as on a full disk; it names a file.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise DataError(f"Expected the name of a file to write but {path} is a folder; add a file name to it.")
    temporary = path.with_name(f".{path.stem[:100]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(handle).st_mode & 0o777
        os.close(handle)
    except OSError as error:
        raise DataError(f"Expected a place to write {path} but got: {error}; choose another folder.") from error
    try:
        yield temporary
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # writing, unlike opening, names no file
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which is renamed to ``path`` on success and removed on failure.

    Raises:
        DataError: when it cannot be made.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"Expected a place to write {path} but got: {error}; choose another folder.") from error
    try:
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise DataError(f"Expected to write {path} but got: {error}; choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
