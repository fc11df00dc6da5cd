"""Regular files: what is opened, and that a pipe or a device in the place of a file is refused at once."""

import os
import socket
from pathlib import Path

import pytest

from minibert.errors import ConfigError, WeightsError
from minibert.safe import regular
from minibert.safe.regular import is_there, open_regular, read_regular


@pytest.fixture
def path(tmp_path):
    """Return the path of a file that does not exist yet."""
    return tmp_path / "config.json"


def make_socket(path):
    """Make a socket of that name."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


#: What can stand in the place of a file, and what it is called.
OTHERS = {
    "folder": (Path.mkdir, "it is a folder"),
    "pipe": (os.mkfifo, "it is a named pipe"),
    "socket": (make_socket, "it is a socket"),
    "link to /dev/zero": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "link to a pipe": (lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")), "it is a named pipe"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "is a link to a file that does not exist"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_is_refused(path, other):
    """What is not a regular file is refused without waiting, by the class of error that was asked for."""
    make, reason = OTHERS[other]
    make(path)

    assert is_there(path)
    with pytest.raises(WeightsError, match=reason):
        read_regular(path, WeightsError, 10)


@pytest.mark.parametrize("other", ["folder", "pipe"])
def test_other_that_comes_after_the_first_look(path, other, monkeypatch):
    """What takes the place of a file while it is opened is refused, too, and not waited for."""
    make, reason = OTHERS[other]
    path.write_bytes(b"{}")
    before = path.stat()
    path.unlink()
    make(path)
    monkeypatch.setattr(Path, "stat", lambda _: before)

    with pytest.raises(ConfigError, match=reason if other == "pipe" else "cannot be read: Is a directory"):
        open_regular(path, ConfigError)


def test_nothing(path):
    """Where there is nothing, the caller is told so, and can say what the file would be for."""
    assert not is_there(path)
    with pytest.raises(FileNotFoundError):
        open_regular(path, ConfigError)


def test_link_to_a_file(path):
    """A link to a regular file is followed: all files of the hub's cache are links."""
    (path.parent / "blob").write_bytes(b"{}")
    path.symlink_to("blob")

    assert read_regular(path, ConfigError, 2) == b"{}"


def test_size(path):
    """A file of the limit is read; a larger one is refused, with both sizes."""
    path.write_bytes(bytes(1234))

    assert read_regular(path, ConfigError, 1234) == bytes(1234)
    with pytest.raises(ConfigError, match=r"config\.json has 1,234 bytes; at most 1,233 are read"):
        read_regular(path, ConfigError, 1233)


def test_file_that_grows(path, monkeypatch):
    """A file that grows after it was looked at is read up to the limit only."""
    path.write_bytes(b"12345")
    monkeypatch.setattr(regular, "_require_regular", lambda *_: None)

    assert read_regular(path, ConfigError, 3) == b"123"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read(path):
    """A file without permission is refused with the system's words."""
    path.touch(0)

    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        open_regular(path, ConfigError)
