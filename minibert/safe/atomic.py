"""Atomic writing of files. minibert writes all files of users with this module."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from minibert.typing import PathLike


@contextlib.contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """Give a new, empty file for writing. It replaces ``path`` if the block ends without an exception.

    The new file is in the folder of ``path``. It is synced to disk before it is renamed. If anything fails, it is
    removed, and ``path`` does not change. If ``path`` is a symbolic link, its target is replaced. The new file gets the
    permissions of the file that it replaces.

    Raises:
        FileExistsError: ``path`` exists and is not a regular file. Raised before the block begins.
        OSError: The file cannot be written. The error names ``path``.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path} must be a regular file or a new one; it is something else. Give another name.")
    new = beside(target)
    try:
        new.touch(exist_ok=False)
        if target.exists():
            shutil.copymode(target, new)
        yield new
        sync(new)
        new.replace(target)
    except OSError as error:
        _name(error, new, path)
        raise
    finally:
        new.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Return an unused name in the folder of ``path``."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def sync(path: Path) -> None:
    """Wait until the file is on disk. Otherwise, a renamed file could be empty after a power failure."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _name(error: OSError, new: Path, path: PathLike) -> None:
    """Change the file name in an error from the temporary file to ``path``, which the user knows."""
    if error.filename is not None and os.fspath(error.filename) == os.fspath(new):
        error.filename = os.fspath(path)
    words = (part.replace(str(new), os.fspath(path)) if isinstance(part, str) else part for part in error.args)
    error.args = tuple(words)
