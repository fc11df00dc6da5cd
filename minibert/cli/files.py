"""Files: the folder of a model, and outputs that appear whole or not at all."""

import argparse
import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from minibert.files import hub


def model_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the model that the command line names, fetched from the hub if need be."""
    return hub.resolve(
        options.model,
        revision=options.revision,
        cache_folder=options.cache_folder,
        local_files_only=options.local_files_only,
    )


@contextlib.contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a new file beside ``path`` to write to; it becomes ``path`` when the block ends without an exception.

    Whatever else ends the block, the new file is removed and ``path`` is as it was.

    Raises:
        OSError: ``path`` is there already and ``overwrite`` is false, or no file can be written there. Raised
            before the block begins.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output must lie in a folder; there is no folder {path.parent}. Create it first.")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"--output must be a regular file; {path} is not. Give another name.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Give another --output, or --overwrite to replace it.")
    path = path.resolve()  # a symbolic link stays one
    new = _beside(path)
    try:
        new.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, new)
        yield new
        _sync(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a new folder beside ``path`` to fill; it becomes ``path`` when the block ends without an exception.

    Whatever else ends the block, the new folder is removed and ``path`` is as it was.

    Raises:
        OSError: ``path`` is not an empty folder, unless it is a model's folder and ``overwrite`` is true; or no
            folder can be made there. Raised before the block begins.
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
    new, old = _beside(path), _beside(path)
    try:
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _sync(file)
        _exchange(path, new, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def _exchange(path: Path, new: Path, old: Path) -> None:
    """Rename ``new`` to ``path``, by way of ``old`` for what is at ``path``; no system replaces a folder in one go."""
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the file is on the disk: a rename that outlives a power cut must not find it empty."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
