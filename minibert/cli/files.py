"""Files: the folder of a model, and outputs that are written completely or not at all."""

import argparse
import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from minibert.files import hub
from minibert.safe.atomic import beside, sync, whole_file


def model_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the model that the command line names. Fetch it from the hub if necessary."""
    return hub.resolve(
        options.model,
        revision=options.revision,
        cache_folder=options.cache_folder,
        local_files_only=options.local_files_only,
    )


@contextlib.contextmanager
def output_file(path: Path, *, overwrite: bool, option: str = "--output") -> Iterator[Path]:
    """Give the new file that becomes ``path``, as :func:`minibert.safe.atomic.whole_file` does.

    Args:
        path: The file.
        overwrite: Whether it may replace a file.
        option: The option that names the file, for messages.

    Raises:
        OSError: ``path`` exists and ``overwrite`` is false, or no file can be written there. Raised before the block
            begins.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} must lie in a folder; there is no folder {path.parent}. Create it first.")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{option} must be a regular file; {path} is not. Give another name.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Give another {option}, or --overwrite to replace it.")
    with whole_file(path) as new:
        yield new


def refuse_own_input(output: Path | None, source: str) -> None:
    """Raise ValueError if a command would write its result to its input file. Two names can be the same file.

    Args:
        output: The file to write; None for standard output.
        source: The file to read; ``"-"`` for standard input.
    """
    written = _status(sys.stdout if output is None else output)
    read = _status(sys.stdin if source == "-" else Path(source))
    if written is None or read is None or not os.path.samestat(written, read) or not stat.S_ISREG(read.st_mode):
        return
    names = "standard output" if output is None else output, "standard input" if source == "-" else source
    raise ValueError(
        f"the output must be another file than the input; {names[0]} and {names[1]} are the same file. "
        "Give another --output."
    )


def _status(file: Path | TextIO) -> os.stat_result | None:
    """Return the status of a file or a stream; None if there is no such file."""
    try:
        return file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):  # a stream in memory
        return None


@contextlib.contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a new folder next to ``path``. It becomes ``path`` if the block ends without an exception.

    After an exception, the new folder is removed, and ``path`` does not change.

    Raises:
        OSError: ``path`` exists and is neither an empty folder nor, with ``overwrite``, a model's folder; or no folder
            can be created there. Raised before the block begins.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"OUTPUT_DIR must lie in a folder; there is no folder {path.parent}. Create it first.")
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"OUTPUT_DIR must be a folder; {path} is not. Give another name.")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{path} is not empty. Give another OUTPUT_DIR, or --overwrite to replace it.")
        if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
            raise FileExistsError(
                f"--overwrite replaces a model's folder; {path} has other files, and neither config.json nor "
                "modules.json. Delete it yourself, or give another OUTPUT_DIR."
            )
    new, old = beside(path), beside(path)
    try:
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                sync(file)
        _exchange(path, new, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _exchange(path: Path, new: Path, old: Path) -> None:
    """Rename ``path`` to ``old``, then ``new`` to ``path``. No system can replace a folder in one step."""
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
