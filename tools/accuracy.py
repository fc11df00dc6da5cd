"""Print the error of minibert and of transformers against float64, on the same texts.

    python tools/accuracy.py MODEL TEXTS [--count 512] [--batch-size 32]
    python tools/accuracy.py --seeded SBERT-base-nli-v2 MODEL TEXTS --count 96

MODEL is a local folder. TEXTS is a file with one text per line, or a .csv of sentence pairs; then the first column is
used. With --seeded, the model is a card at full size with weights from seed 0, and MODEL only provides the vocabulary.
The truth is transformers' BertModel in float64. The table also lists minibert in float64, which must agree with it
within rounding errors.

Columns: the RMS and the largest absolute error of the last hidden state over all real tokens, and the largest absolute
error of the mean-pooled vector, scaled to length 1. It needs the ``reference`` extra and torch.
"""

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from repos import write_seeded_repo

from minibert import BertModel
from minibert.config import BertConfig
from minibert.engine import native, packed
from minibert.engine.devices import Engine, open_engine
from minibert.engine.packing import Packing
from minibert.files.checkpoint import BertReader
from minibert.tokenization import TextTokenizer
from minibert.typing import Array

Hidden = Callable[[Array, Array], Array]


class Errors(NamedTuple):
    """Errors against float64: RMS and largest of the last hidden state, and largest of the normalised vectors."""

    rms: float
    hidden: float
    vector: float


def measure(folder: Path, texts: Sequence[str], batch_size: int = 32) -> dict[str, Errors]:
    """Return the errors of each implementation on ``texts``, in padded batches in the order of the texts."""
    implementations = _implementations(folder)
    truth = implementations.pop("truth")
    squares = dict.fromkeys(implementations, 0.0)
    hidden = dict.fromkeys(implementations, 0.0)
    vector = dict.fromkeys(implementations, 0.0)
    count = 0
    for ids, mask in _batches(folder, texts, batch_size):
        exact = truth(ids, mask)
        count += int(mask.sum()) * exact.shape[-1]
        for name, run in implementations.items():
            actual = run(ids, mask).astype(np.float64)
            difference = (actual - exact)[mask]
            squares[name] += float(np.square(difference).sum())
            hidden[name] = max(hidden[name], float(np.abs(difference).max()))
            vector[name] = max(vector[name], float(np.abs(_unit_mean(actual, mask) - _unit_mean(exact, mask)).max()))
    return {name: Errors((squares[name] / count) ** 0.5, hidden[name], vector[name]) for name in implementations}


def _unit_mean(hidden: Array, mask: Array) -> Array:
    mean = np.where(mask[..., None], hidden, 0).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _batches(folder: Path, texts: Sequence[str], batch_size: int) -> Iterator[tuple[Array, Array]]:
    tokenizer = TextTokenizer.from_folder(folder)
    rows = list(tokenizer(list(texts), 256).ids)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = row
        yield ids, np.arange(ids.shape[1]) < np.array([[len(row)] for row in batch])


def _implementations(folder: Path) -> dict[str, Hidden]:
    import torch
    from transformers import BertModel as Peer

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

    def packed_hidden(engine: Engine) -> Hidden:
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

    return {
        "truth": torch_hidden(torch.float64, "eager"),
        "transformers eager float32": torch_hidden(torch.float32, "eager"),
        "transformers sdpa float32": torch_hidden(torch.float32, "sdpa"),
        **{
            f"minibert {kernels} float32": packed_hidden(open_engine("cpu", "float32", kernels))
            for kernels in (*native.available(), native.NUMPY)
        },
        "minibert.model float32": own_hidden("float32"),
        "minibert.model float64": own_hidden("float64"),
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
            vocabulary = (folder / "vocab.txt").read_text("utf-8").split("\n")[:-1]
            folder = write_seeded_repo(Path(scratch), options.seeded, vocabulary)
        errors = measure(folder, texts, options.batch_size)
    peer = errors["transformers sdpa float32"].rms
    print(f"{len(texts)} texts in batches of {options.batch_size}\n")
    print(f"{'implementation':28} {'RMS':>9} {'x sdpa':>7} {'max':>9} {'max, unit vectors':>18}")
    for name, error in errors.items():
        print(f"{name:28} {error.rms:9.2e} {error.rms / peer:7.2f} {error.hidden:9.2e} {error.vector:18.2e}")


if __name__ == "__main__":
    main()
