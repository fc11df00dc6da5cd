"""Print the error of minibert and of transformers against float64, on the same texts.

    python tools/accuracy.py MODEL TEXTS [--count 512] [--batch-size 32]
    python tools/accuracy.py --seeded SBERT-base-nli-v2 MODEL TEXTS --count 96

MODEL is a local folder. TEXTS is a file with one text per line, or a .csv of sentence pairs; then the first column is
used. With --seeded, the model is a card at full size with weights from seed 0, and MODEL only provides the vocabulary.
A card of another family than BERT has a small vocabulary of its own. The truth is transformers' model in float64. The
table also lists minibert in float64, which must agree with it within rounding errors.

Columns: the RMS and the largest absolute error of the last hidden state over all real tokens, and the largest absolute
error of the mean-pooled vector, scaled to length 1. "x peer" is the RMS as a multiple of that of transformers in
float32, with sdpa attention; with eager attention if the family has no other. It needs the ``reference`` extra and
torch.
"""

import argparse
import csv
import functools
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from repos import write_seeded_repo

from minibert import BertModel
from minibert.config import BertConfig
from minibert.engine import native, packed
from minibert.engine.devices import open_engine
from minibert.engine.packing import Packing
from minibert.files.checkpoint import BertReader
from minibert.tokenization import TextTokenizer
from minibert.typing import Array

Hidden = Callable[[Array, Array], Array]


#: What minibert's errors are compared with: the first that there is.
PEERS = ("transformers sdpa float32", "transformers eager float32")


class Errors(NamedTuple):
    """Errors against float64: RMS and largest of the last hidden state, and largest of the normalised vectors."""

    rms: float
    hidden: float
    vector: float


def measure(
    folder: Path, texts: Sequence[str], batch_size: int = 32, names: Collection[str] | None = None
) -> dict[str, Errors]:
    """Return the errors of each implementation on ``texts``, in padded batches in the order of the texts.

    Only one implementation is in memory at a time. With ``names``, only these are measured, if there are such.
    """
    batches = list(_batches(folder, texts, batch_size))
    implementations = _implementations(folder)
    truth = implementations.pop("truth")()
    exact = [truth(ids, mask) for ids, mask in batches]
    del truth
    chosen = {name: load for name, load in implementations.items() if names is None or name in names}
    return {name: _errors(load(), batches, exact) for name, load in chosen.items()}


def _errors(run: Hidden, batches: Sequence[tuple[Array, Array]], truth: Sequence[Array]) -> Errors:
    """Return the errors of one implementation."""
    squares = hidden = vector = 0.0
    count = 0
    for (ids, mask), exact in zip(batches, truth, strict=True):
        actual = run(ids, mask).astype(np.float64)
        difference = (actual - exact)[mask]
        count += difference.size
        squares += float(np.square(difference).sum())
        hidden = max(hidden, float(np.abs(difference).max()))
        vector = max(vector, float(np.abs(_unit_mean(actual, mask) - _unit_mean(exact, mask)).max()))
    return Errors((squares / count) ** 0.5, hidden, vector)


def peer_of(errors: dict[str, Errors]) -> Errors:
    """Return the error of transformers in float32 that minibert's is compared with."""
    return errors[next(name for name in PEERS if name in errors)]


def _unit_mean(hidden: Array, mask: Array) -> Array:
    mean = np.where(mask[..., None], hidden, 0).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _batches(folder: Path, texts: Sequence[str], batch_size: int) -> Iterator[tuple[Array, Array]]:
    tokenizer = TextTokenizer.from_folder(folder)
    limit = min(256, BertConfig.from_file(folder / "config.json").max_tokens)
    rows = list(tokenizer(list(texts), limit).ids)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids = np.full((len(batch), max(map(len, batch))), tokenizer.pad_id, np.int64)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = row
        yield ids, np.arange(ids.shape[1]) < np.array([[len(row)] for row in batch])


def _implementations(folder: Path) -> dict[str, Callable[[], Hidden]]:
    """Return functions that load the implementations."""
    import torch
    from transformers import AutoModel as Peer

    def torch_hidden(dtype: Any, attention: str) -> Hidden:
        model = Peer.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()

        def run(ids: Array, mask: Array) -> Array:
            with torch.inference_mode():
                output = model(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))
            hidden: Array = output.last_hidden_state.numpy()
            return hidden

        return run

    def own_hidden(dtype: str) -> Hidden:
        model = BertModel.from_pretrained(folder, dtype=dtype)
        return lambda ids, mask: model(ids, mask).last_hidden_state

    def packed_hidden(kernels: str) -> Hidden:
        engine = open_engine("cpu", "float32", kernels)
        config = BertConfig.from_file(folder / "config.json")
        model, rule = engine.load(BertReader(folder, config, np.float32), config)

        def run(ids: Array, mask: Array) -> Array:
            rows = [row[kept] for row, kept in zip(ids, mask, strict=True)]
            packing = Packing.of([len(row) for row in rows], [int(row.sum()) for row in rows], rule)
            with engine.worker() as fused:
                x = fused.unpack(packed.bert(model, config, np.concatenate(rows), packing, fused), packing)
            hidden = np.zeros((*mask.shape, x.shape[1]), x.dtype)
            hidden[mask] = x
            return hidden

        return run

    is_mpnet = BertConfig.from_file(folder / "config.json").model_type == "mpnet"
    attentions = ["eager"] if is_mpnet else ["eager", "sdpa"]  # transformers has no other for MPNet
    return {
        "truth": lambda: torch_hidden(torch.float64, "eager"),
        **{
            f"transformers {attention} float32": functools.partial(torch_hidden, torch.float32, attention)
            for attention in attentions
        },
        **{
            f"minibert {kernels} float32": functools.partial(packed_hidden, kernels)
            for kernels in (*native.available(), native.NUMPY)
        },
        "minibert.model float32": lambda: own_hidden("float32"),
        "minibert.model float64": lambda: own_hidden("float64"),
    }


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: the first column of a .csv, else one text per line."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row[0] for row in csv.reader(file)] if path.suffix == ".csv" else file.read().splitlines()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] MODEL TEXTS",
    )
    parser.add_argument("model", type=Path, help="a local model folder")
    parser.add_argument("texts", type=Path, help="a file with one text per line, or a .csv")
    parser.add_argument("--count", type=int, default=512, help="number of texts (default: 512)")
    parser.add_argument("--batch-size", type=int, default=32, help="number of texts in a batch (default: 32)")
    parser.add_argument("--seeded", metavar="CARD", help="a card of tests/cards.json, at full size with seeded weights")
    options = parser.parse_args()

    texts = read_texts(options.texts)[: options.count]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model
        if options.seeded:
            path = folder / "vocab.txt"
            vocabulary = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else None
            folder = write_seeded_repo(Path(scratch), options.seeded, vocabulary)
        errors = measure(folder, texts, options.batch_size)
    peer = peer_of(errors).rms
    print(f"{len(texts)} texts in batches of {options.batch_size}\n")
    print(f"{'implementation':28} {'RMS':>9} {'x peer':>7} {'max':>9} {'max, unit vectors':>18}")
    for name, error in errors.items():
        print(f"{name:28} {error.rms:9.2e} {error.rms / peer:7.2f} {error.hidden:9.2e} {error.vector:18.2e}")


if __name__ == "__main__":
    main()
