"""Files that appear whole or not at all, also where the work or the disk fails."""

import os
from pathlib import Path

import numpy as np
import pytest
from cli_support import listing

from minibert import SearchIndex
from minibert.safe.atomic import whole_file


@pytest.fixture
def index():
    """Return a small search index."""
    return SearchIndex(
        texts=["the cat"],
        vectors=np.ones((1, 3), np.float32),
        numbers=np.ones(1, np.int64),
        model="built-in",
        fingerprint="0" * 64,
        similarity_fn_name="cosine",
    )


def write(path, fail=lambda _: None):
    """Write a file whole, and call ``fail`` with the new one before the end."""
    with whole_file(path) as new:
        new.write_text("new")
        fail(new)


def test_file_is_there_at_the_end_only(tmp_path):
    """While the block runs, nothing is under the name, and what is written lies in the same folder."""
    with whole_file(tmp_path / "x") as new:
        new.write_text("new")
        assert new.parent == tmp_path
        assert not (tmp_path / "x").exists()

    assert (tmp_path / "x").read_text() == "new"
    assert listing(tmp_path) == ["x"]


def test_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """The content is flushed to the disk first: after a power cut there is the old file or the new one."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_size, listing(tmp_path))))

    write(tmp_path / "x")

    ((size, names),) = synced
    assert size == len("new")
    assert "x" not in names


@pytest.mark.parametrize("target", ["os.fsync", "pathlib.Path.replace", None])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_leaves_what_was_there(tmp_path, monkeypatch, target, error, old):
    """Whatever fails, no new file is left, and an old one is as it was."""

    def fail(*_, **__):
        raise error

    if old is not None:
        (tmp_path / "x").write_text(old)
    if target is not None:
        monkeypatch.setattr(target, fail)

    with pytest.raises(type(error)):
        write(tmp_path / "x", fail if target is None else lambda _: None)

    assert listing(tmp_path) == ([] if old is None else ["x"])
    assert old is None or (tmp_path / "x").read_text() == old


@pytest.mark.parametrize("exists", [True, False])
def test_link_stays_a_link(tmp_path, exists):
    """A symbolic link at the target is kept; the file that it names is written, in its own folder."""
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    if exists:
        real.write_text("old")
    (tmp_path / "x").symlink_to(real)

    write(tmp_path / "x")

    assert (tmp_path / "x").is_symlink()
    assert real.read_text() == "new"
    assert listing(real.parent) == ["real"]


def test_permissions(tmp_path):
    """A private file stays private; a new one has what the umask leaves."""
    (tmp_path / "private").touch(mode=0o600)
    before = os.umask(0o027)
    try:
        write(tmp_path / "private")
        write(tmp_path / "new")
    finally:
        os.umask(before)

    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "new")] == [0o600, 0o640]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    """A folder, a pipe or a device is refused before anything is written."""
    make(tmp_path / "x")

    with pytest.raises(FileExistsError, match="x must be a regular file or a new one"):
        write(tmp_path / "x")
    assert listing(tmp_path) == ["x"]
    assert not (tmp_path / "x").is_file()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda new: OSError(28, "No space left on device", str(new)), r"\[Errno 28\] No space left on device: '.*/x'"),
        (lambda new: OSError(f"{new} cannot be written"), ".*/x cannot be written"),
        (lambda _: OSError(5, "Input/output error"), r"\[Errno 5\] Input/output error"),
    ],
)
def test_error_names_the_file_that_was_asked_for(tmp_path, error, message):
    """An error about the new file names the target instead; the other name means nothing to anybody."""

    def fail(new):
        raise error(new)

    with pytest.raises(OSError, match=f"^{message}$"):
        write(tmp_path / "x", fail)


@pytest.mark.parametrize("target", ["os.fsync", "minibert.index.save_safetensors"])
def test_failed_index_leaves_nothing(tmp_path, monkeypatch, index, target):
    """An index that cannot be saved leaves no file."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, fail)

    with pytest.raises(OSError, match="No space left"):
        index.save(tmp_path / "x")
    assert listing(tmp_path) == []


def test_index_is_saved_where_a_link_leads(tmp_path, index):
    """The file that a link names becomes the index, and the link stays."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")

    index.save(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert SearchIndex.load(tmp_path / "real").texts == ["the cat"]
    assert listing(tmp_path) == ["link", "real"]
