"""One folder with all files for a machine with a GPU and without a network; and models with seeded weights.

:func:`pack` is the command ``gpu_check.py pack``. Its folder holds::

    manifest.json   versions, sizes and SHA-256 of the files, and what the texts are
    minilm/         all-MiniLM-L6-v2, its weights in float16
    sts.csv         sentence pairs with scores
    sts.npy         minibert's float32 vectors, on a CPU, of all left sentences and then of all right ones
    texts.json.xz   the benchmark's texts, by kind
"""

import datetime as dt
import gzip
import hashlib
import importlib.metadata
import itertools
import json
import lzma
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import commit
from bench_peers import read_json
from bench_setup import Seeded, make
from repo_tokenizers import dump
from repos import write_layout
from sts import read_pairs

from minibert import SentenceEncoder, __version__
from minibert.cli.convert import convert
from minibert.cli.files import whole_folder
from minibert.files.checkpoint import save_safetensors
from minibert.repo import ModelRepo
from minibert.typing import Array

MEBIBYTE = 1 << 20

#: Minimum and maximum number of tokens of the texts of each kind, in MiniLM's tokens, with special tokens. Their
#: logarithms are spread evenly. The last kind has fewer texts, by the factor next to it.
KINDS = {"short": (4, 24, 1), "mixed": (4, 256, 1), "tokens128": (128, 128, 1), "long": (512, 512, 8)}
#: Number of characters that are tokenized at a time.
_PIECE = 200_000


#: The models with seeded weights. In a dry run, both are small.
SEEDED = {"base": Seeded(768, 12, 12), "large": Seeded(1024, 24, 16)}
_DRY = Seeded(32, 2, 2)


class PackError(Exception):
    """The folder would be too large, the corpus is too short, or a file has changed since packing."""


def pack(folder: Path, minilm: Path, stsb: Path, corpus: Path, count: int, most: int) -> None:
    """Write the folder, completely or not at all.

    Args:
        folder: The new folder. It must not exist.
        minilm: The folder of all-MiniLM-L6-v2.
        stsb: Sentence pairs with scores, as tools/sts.py reads them.
        corpus: A text file with one text per line, or a .gz of it.
        count: Number of texts of each kind.
        most: Maximum size of the folder in bytes.

    Raises:
        PackError: The folder would be too large, or the corpus is too short.
    """
    encoder = SentenceEncoder(minilm, on_truncate="ignore")
    with whole_folder(folder, overwrite=False) as new:
        (new / "minilm").mkdir()
        convert(ModelRepo.open(minilm), new / "minilm", np.dtype(np.float16))
        shutil.copyfile(stsb, new / "sts.csv")
        pairs = read_pairs(stsb)
        np.save(new / "sts.npy", encoder.encode([*pairs.left, *pairs.right]))
        texts = make_texts(encoder, corpus, count)
        (new / "texts.json.xz").write_bytes(lzma.compress(json.dumps(texts, ensure_ascii=False).encode("utf-8")))
        files = sorted(path for path in new.rglob("*") if path.is_file())
        manifest: dict[str, Any] = {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "minibert": __version__,
            "commit": commit(),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("numpy", "safetensors", "tokenizers")},
            "texts": {kind: {"texts": len(some), "tokens": KINDS[kind][:2]} for kind, some in texts.items()},
            "files": {path.relative_to(new).as_posix(): describe(path) for path in files},
        }
        dump(new / "manifest.json", manifest)
        total = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
        if total > most:
            raise PackError(
                f"{folder} must have at most {most:,} bytes; it would have {total:,}. Give fewer texts with --count."
            )
    print(f"{folder}: {total / MEBIBYTE:.1f} MiB")


def describe(path: Path) -> dict[str, Any]:
    """Return the size and the hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def check(folder: Path) -> None:
    """Raise PackError if the files of a folder have changed since packing."""
    for name, expected in read_json(folder / "manifest.json")["files"].items():
        if not (folder / name).is_file() or describe(folder / name) != expected:
            raise PackError(f"{folder / name} is not the file that was packed: copy the folder again.")


def read_texts(folder: Path) -> dict[str, list[str]]:
    """Return the texts of a folder, by kind."""
    texts: dict[str, list[str]] = json.loads(lzma.decompress((folder / "texts.json.xz").read_bytes()))
    return texts


def make_texts(encoder: SentenceEncoder, corpus: Path, count: int) -> dict[str, list[str]]:
    """Return distinct texts of each kind, cut from a corpus."""
    rng = np.random.default_rng(0)
    lengths = {}
    for kind, (least, longest, fewer) in KINDS.items():
        drawn = np.exp(rng.uniform(np.log(least), np.log(longest + 1), -(-count // fewer)))
        lengths[kind] = drawn.astype(int).clip(least, longest).tolist()
    texts = list(cut_texts(encoder, read_lines(corpus), list(itertools.chain.from_iterable(lengths.values()))))
    wanted = sum(map(len, lengths.values()))
    if len(texts) < wanted:
        raise PackError(f"{corpus} is too short: it gives {len(texts)} of {wanted} texts. Give fewer with --count.")
    remaining = iter(texts)
    return {kind: list(itertools.islice(remaining, len(each))) for kind, each in lengths.items()}


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file that are not blank."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from filter(None, map(str.strip, file))


def cut_texts(encoder: SentenceEncoder, lines: Iterator[str], lengths: Sequence[int]) -> Iterator[str]:
    """Yield distinct texts with about these numbers of tokens, cut from the joined lines at the ends of words."""
    seen: set[str] = set()
    wanted = iter(lengths)
    length = next(wanted, None)
    while length is not None:
        some: list[str] = []
        while sum(map(len, some)) < _PIECE and (line := next(lines, None)) is not None:
            some.append(line)
        if not some:
            return
        text = " ".join(some)
        encoding = encoder.tokenizer.encode(text, add_special_tokens=False)
        starts, ends = np.array(encoding.offsets).T
        token = 0
        while length is not None and token + max(length - 2, 1) <= len(ends):
            end = int(ends[token + max(length - 2, 1) - 1])
            while end < len(text) and not text[end].isspace():
                end += 1
            one = text[starts[token] : end]
            token = int(np.searchsorted(starts, end))
            if one not in seen:
                seen.add(one)
                yield one
                length = next(wanted, None)


def seeded_model(folder: Path, name: str, *, dry: bool = False) -> Path:
    """Return the folder of a model with seeded weights. Create it if it does not exist.

    minibert and sentence-transformers can read it. It has MiniLM's tokenizer and config except the sizes, mean pooling
    and 512 tokens. Matrices and biases are normal with a standard deviation of 0.02. With biases of 0, an encoder that
    ignores biases would pass.
    """
    made = folder / ("dry" if dry else "seeded")
    make(made, name, lambda new: write_seeded(new, folder / "minilm", _DRY if dry else SEEDED[name]))
    return made / name


def write_seeded(folder: Path, minilm: Path, sizes: Seeded) -> None:
    """Write such a model."""
    folder.mkdir()
    vocabulary = (minilm / "vocab.txt").read_text("utf-8").split("\n")[:-1]
    write_layout(
        folder, {"do_lower_case": True, "max_seq_length": 512, "pooling_mode": "mean"}, sizes.hidden_size, vocabulary
    )
    config = {
        **read_json(minilm / "config.json"),
        **sizes._asdict(),
        "vocab_size": len(vocabulary),
        "intermediate_size": 4 * sizes.hidden_size,
        "max_position_embeddings": 512,
    }
    dump(folder / "config.json", config)
    save_safetensors(folder / "model.safetensors", dict(seeded_tensors(sizes, len(vocabulary))), {"format": "pt"})


def seeded_tensors(sizes: Seeded, words: int) -> Iterator[tuple[str, Array]]:
    """Yield the names and the float16 numbers of a BERT's tensors."""
    rng = np.random.default_rng(0)
    hidden, inner = sizes.hidden_size, 4 * sizes.hidden_size

    def draw(*shape: int) -> Array:
        return (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(np.float16)

    def norm(name: str) -> Iterator[tuple[str, Array]]:
        yield f"{name}.weight", np.ones(hidden, np.float16)
        yield f"{name}.bias", np.zeros(hidden, np.float16)

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Array]]:
        yield f"{name}.weight", draw(outputs, inputs)
        yield f"{name}.bias", draw(outputs)

    for name, rows in (("word", words), ("position", 512), ("token_type", 2)):
        yield f"embeddings.{name}_embeddings.weight", draw(rows, hidden)
    yield from norm("embeddings.LayerNorm")
    for number in range(sizes.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        for name in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{name}", hidden, hidden)
        yield from linear(f"{layer}.attention.output.dense", hidden, hidden)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", hidden, inner)
        yield from linear(f"{layer}.output.dense", inner, hidden)
        yield from norm(f"{layer}.output.LayerNorm")
    yield from linear("pooler.dense", hidden, hidden)
