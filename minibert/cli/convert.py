"""``minibert convert``: convert any repo that minibert reads to safetensors weights with transformers' names."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from minibert.cli.files import model_folder, whole_folder
from minibert.encoder import SentenceEncoder
from minibert.errors import ConfigError, WeightsError
from minibert.files.checkpoint import WEIGHTS_FILES, StoredTensor, open_bert, open_weights, save_safetensors
from minibert.files.checkpoint.names import own_name
from minibert.repo import ModelRepo
from minibert.safe.jsonfile import read_object
from minibert.typing import Array


def run(options: argparse.Namespace) -> None:
    """Write the converted repo, completely or not at all."""
    folder = model_folder(options)
    if folder.is_relative_to(options.output.resolve()):
        raise ValueError(f"OUTPUT_DIR must not hold the model itself; {options.output} does. Give another folder.")
    with whole_folder(options.output, overwrite=options.overwrite) as new:
        SentenceEncoder(folder)  # raises an error if a part of the repo cannot be used
        convert(ModelRepo.open(folder), new, np.dtype(options.dtype))
    if sys.stderr.isatty():
        sys.stderr.write(f"minibert: wrote {options.output} with {options.dtype} weights\n")


def convert(repo: ModelRepo, target: Path, dtype: np.dtype[np.floating]) -> None:
    """Write the repo to the empty folder ``target``: the weights in ``dtype``, other files unchanged.

    Links to files of the repo are followed, other links are not.

    Only ``config.json`` changes: its dtype is float32, even with float16 weights, because transformers computes in the
    dtype in this file.

    Raises:
        ConfigError: A file is a link to a file outside the repo.
        WeightsError: A value is too large for ``dtype``.
    """
    weights_folders = set()
    names = repo.files()
    _refuse_links_out(repo, map(repo.folder.joinpath, names))
    for name in names:
        source, copy = repo.folder / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if _is_weights(name):
            weights_folders.add(source.parent)
        elif source == repo.transformer_folder / "config.json":
            config = {key: value for key, value in read_object(source).items() if key != "torch_dtype"}
            config["dtype"] = "float32"
            copy.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(source, copy)
    for folder in weights_folders:
        is_bert = folder == repo.transformer_folder
        tensors = open_bert(folder, repo.config) if is_bert else open_weights(folder)
        _refuse_links_out(repo, {tensor.path for tensor in tensors.values()})
        named = {own_name(name, repo.config) if is_bert else name: tensor for name, tensor in tensors.items()}
        converted = {name: _converted(tensor, dtype) for name, tensor in named.items()}
        # Versions of transformers before 5 refuse files without this entry.
        metadata = {"format": "pt"}
        save_safetensors(target / folder.relative_to(repo.folder) / "model.safetensors", converted, metadata)


def _refuse_links_out(repo: ModelRepo, files: Iterable[Path]) -> None:
    """Raise ConfigError if a file is outside the repo. Its author must not be able to copy other files of the user."""
    folder = repo.folder.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":  # in the hub's cache, files are links to blobs
        allowed.append(folder.parent.parent / "blobs")
    for file in files:
        real = file.resolve()
        if not any(map(real.is_relative_to, allowed)):
            raise ConfigError(
                f"{file} must be a file of the repo; it is a link to {real}. If that is what you want, replace the "
                "link by a copy."
            )


def _is_weights(name: str) -> bool:
    file = PurePosixPath(name).name
    return any(fnmatchcase(file, pattern) for kind in WEIGHTS_FILES for pattern in kind)


def _converted(tensor: StoredTensor, dtype: np.dtype[np.floating]) -> Array:
    values = tensor.read()
    with np.errstate(over="ignore"):
        converted = values.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        raise WeightsError(
            f"{tensor.path}: {tensor.name} must fit in {dtype.name}, which ends at {np.finfo(dtype).max:.6g}; it "
            f"goes up to {np.abs(values).max():.6g}. Use --dtype float32."
        )
    return converted
