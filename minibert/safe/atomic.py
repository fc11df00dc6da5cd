"""Files that appear whole or not at all: everything that minibert writes for a user is written here."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from minibert.typing import PathLike


@contextlib.contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """Give a new, empty file to write to; it takes the place of ``path`` when the block ends without an exception.

    The new file lies in the folder of ``path``. It is on the disk before it is renamed. If anything fails, it is
    removed, and ``path`` is as it was. A symbolic link stays one: the file that it names is replaced. A file that is
    replaced hands on its permissions.

    Raises:
        FileExistsError: ``path`` is something other than a regular file. Raised before the block begins.
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
    """Return a name in the folder of ``path`` that nothing has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def sync(path: Path) -> None:
    """Wait until the file is on the disk: a rename that outlives a power cut must not find it empty."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _name(error: OSError, new: Path, path: PathLike) -> None:
    """Let an error about the new file name the file that was asked for: nobody has heard of the other."""
    if error.filename is not None and os.fspath(error.filename) == os.fspath(new):
        error.filename = os.fspath(path)
    words = (part.replace(str(new), os.fspath(path)) if isinstance(part, str) else part for part in error.args)
    error.args = tuple(words)
