"""Safe opening of a repo's files. Only regular files are opened: a pipe can block, a device can be endless."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from minibert.errors import ModelFileError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_there(path: Path) -> bool:
    """Return whether this name exists. A broken link exists too: it must not count as a missing file."""
    return os.path.lexists(path)


def open_regular(path: Path, refusal: type[ModelFileError], max_bytes: int | None = None) -> BufferedReader:
    """Return a regular file, or a link to one, open for reading.

    Args:
        path: The file.
        refusal: The class of the error for a refused file.
        max_bytes: Maximum size of the file.

    Raises:
        FileNotFoundError: The name does not exist.
        ModelFileError: The file is not regular, is too large, or cannot be opened. The class is ``refusal``.
    """
    try:
        # Check before opening, because opening has effects on some devices. Check again later: the file can change.
        _require_regular(path, path.stat(), refusal, max_bytes)
        # O_NONBLOCK: do not wait for the other end of a pipe. Windows does not have it; it needs O_BINARY for bytes.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise refusal(f"{path} is a link to a file that does not exist. Is the download complete?") from None
        raise
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}.") from error
    try:
        _require_regular(path, os.fstat(file.fileno()), refusal, max_bytes)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, refusal: type[ModelFileError], max_bytes: int) -> bytes:
    """Return the content of a regular file. It never reads more than ``max_bytes``.

    Raises:
        FileNotFoundError: As in :func:`open_regular`.
        ModelFileError: As in :func:`open_regular`, or the file cannot be read.
    """
    with open_regular(path, refusal, max_bytes) as file:
        try:
            # Use the file's size: read(n) allocates n bytes, even for a small file.
            return file.read(min(os.fstat(file.fileno()).st_size, max_bytes))
        except OSError as error:
            raise refusal(f"{path} cannot be read: {error.strerror}.") from error


def _require_regular(path: Path, status: os.stat_result, refusal: type[ModelFileError], max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise refusal(f"{path} must be a regular file; it is {kind}. Download it again.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise refusal(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are read.")
