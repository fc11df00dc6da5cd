"""``minibert encode``: texts in, vectors out."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minibert import __version__
from minibert.cli.encoder import open_encoder, shows_progress
from minibert.cli.files import whole_file
from minibert.cli.texts import read_texts
from minibert.files.checkpoint import save_safetensors
from minibert.index import BUILTIN_NAME
from minibert.typing import Array


def run(options: argparse.Namespace) -> None:
    """Encode the texts and write their vectors; the file, if there is one, whole or not at all."""
    if options.output is None:
        write_jsonl(sys.stdout.buffer, *_encode(options))
        return
    # The file is made first: hours of encoding must not end in a folder that cannot be written to.
    with whole_file(options.output, overwrite=options.overwrite) as path:
        texts, vectors = _encode(options)
        _write(path, texts, vectors, options)
    if sys.stderr.isatty():
        sys.stderr.write(f"minibert: wrote {' x '.join(f'{n:,}' for n in vectors.shape)} to {options.output}\n")


def _encode(options: argparse.Namespace) -> tuple[list[str], Array]:
    """Return the texts, and their vectors as rows."""
    texts = options.texts or read_texts(options.input, options.input_format)
    if options.precision in {"int8", "uint8"} and len(texts) == 1:
        raise ValueError(
            f"--precision {options.precision} takes its ranges from all the texts together; there is only one. "
            "Give more, or use float32, binary or ubinary."
        )
    encoder = open_encoder(options)
    encode: dict[str, Callable[..., Array]]
    encode = {"encode": encoder.encode, "query": encoder.encode_query, "document": encoder.encode_document}
    vectors = encode[options.method](
        texts,
        prompt_name=options.prompt_name,
        prompt=options.prompt,
        batch_size=options.batch_size,
        show_progress_bar=shows_progress(len(texts), options),
        precision=options.precision,
        normalize_embeddings=options.normalize,
        truncate_dim=options.truncate_dim,
    )
    return texts, vectors


def _write(path: Path, texts: Sequence[str], vectors: Array, options: argparse.Namespace) -> None:
    if options.format == "safetensors":
        metadata = {
            "model": BUILTIN_NAME if options.model is None else options.model,
            "minibert": __version__,
            "precision": options.precision,
            "normalize": str(options.normalize).lower(),
            "count": str(len(texts)),
        }
        save_safetensors(path, {"embeddings": vectors}, metadata)
        return
    with path.open("wb") as file:
        if options.format == "npy":
            np.save(file, vectors)
        else:
            write_jsonl(file, texts, vectors)


def write_jsonl(file: BinaryIO, texts: Sequence[str], vectors: Array) -> None:
    """Write a line ``{"text": ..., "embedding": [...]}`` for each text.

    Each number has the fewest digits that give the same float32 again, about half as many as it would have as
    a Python float.

    Raises:
        ValueError: A vector has a value that JSON does not have: NaN or infinity.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"JSON has no NaN and no infinity; the vector of text {int(finite.argmin()) + 1} has. "
            "Check the model, or write npy or safetensors."
        )
    for text, vector in zip(texts, vectors, strict=True):
        numbers = ",".join(map(str, vector))
        file.write(f'{{"text":{json.dumps(text, ensure_ascii=False)},"embedding":[{numbers}]}}\n'.encode())
