"""Count the vectors whose bits differ from the vector of the text alone, over random batchings.

    python tools/invariance.py MODEL TEXTS [TEXTS ...] --out RESULTS.json [--batchings 10000] [--kernels avx2]
    python tools/invariance.py MODEL TEXTS [TEXTS ...] --out RESULTS.json --kernels numpy --core SkylakeX
    python tools/invariance.py --seeded CARD,CARD,... --layers 2 --out RESULTS.json --kernels all

MODEL is a local folder. TEXTS are files with one text per line. With --seeded, the models are cards of
tests/cards.json, at full width and with seeded weights, and the texts are made up: some of them hold padding ids. The
results file is then a list with the results of each card. A batching is one call with a few of the texts in
random order, mostly short ones, and some of them twice. The settings are random: encode or encode_stream, vectors alone
or all features, batch_size, chunk_size, max_batch_tokens, 1 to 4 threads. A batching depends only on --seed and its
number, so a run can be repeated. With --kernels all, the kernels of the batchings take turns: numpy is not one of them,
and the vector of the text alone comes from the first ones. With --core, OpenBLAS uses its kernels for that processor;
this machine must be able to run them. The exit status is 1 if any bit differs. Linux only.
"""

import argparse
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import commit, processor, read_texts, without_folders
from repos import CARDS, FAMILIES, full_vocabulary, made_up_texts, write_seeded_repo

import minibert
from minibert import SentenceEncoder
from minibert.engine import native
from minibert.engine.threads import blas_name
from minibert.typing import Array

FORMS = ("encode", "encode_stream", "features", "one by one")


class Batching(NamedTuple):
    """One call, or several calls if the form is "one by one".

    Attributes:
        rows: The numbers of the texts.
        form: One of FORMS.
        num_threads: The setting of the encoder.
        max_batch_tokens: The setting of the encoder.
        batch_size: The argument of the call.
        chunk_size: The argument of the call.
    """

    rows: list[int]
    form: str
    num_threads: int
    max_batch_tokens: int
    batch_size: int | None
    chunk_size: int


class Difference(NamedTuple):
    """A vector whose bits differ: the number of its batching, its text, and the number of different bits."""

    batching: int
    text: str
    bits: int


def draw(texts: int, number: int, seed: int = 0) -> Batching:
    """Return batching ``number`` of ``texts`` texts. The first texts, which are the shortest, are the most frequent."""
    rng = np.random.default_rng([seed, number])
    few, many = rng.integers(1, 9), rng.integers(9, 33)
    rows = (texts * rng.random(many if rng.random() < 0.05 else few) ** 4).astype(int)
    rows = rng.permutation([*rows, *rng.choice(rows, rng.integers(0, 3))])
    return Batching(
        rows.tolist(),
        form=str(rng.choice(FORMS, p=[0.5, 0.2, 0.2, 0.1])),
        num_threads=int(rng.integers(1, 5)),
        max_batch_tokens=int(rng.choice([1, 16, 64, 256, 1024, 4096])),
        batch_size=None if rng.random() < 0.5 else int(rng.integers(1, 9)),
        chunk_size=int(rng.integers(1, 17)),
    )


def encode(encoder: SentenceEncoder, texts: Sequence[str], batching: Batching) -> Iterable[Array]:
    """Return the vectors of the texts of a batching."""
    chosen = [texts[i] for i in batching.rows]
    encoder.num_threads, encoder.max_batch_tokens = batching.num_threads, batching.max_batch_tokens
    if batching.form == "one by one":
        return [encoder.encode(text) for text in chosen]
    if batching.form == "features":
        features = encoder.encode(chosen, output_value=None, batch_size=batching.batch_size)
        return [each["sentence_embedding"] for each in features]
    if batching.form == "encode_stream":
        chunks = encoder.encode_stream(chosen, chunk_size=batching.chunk_size, batch_size=batching.batch_size)
        return np.concatenate(list(chunks))
    vectors: Array = encoder.encode(chosen, batch_size=batching.batch_size)
    return vectors


def differing_bits(a: Array, b: Array) -> int:
    """Return the number of bits in which two arrays of floats differ."""
    unsigned = f"u{a.itemsize}"
    return int(np.bitwise_count(a.view(unsigned) ^ b.view(unsigned)).sum())


class Comparison:
    """A comparison of the vectors of random batchings with the vectors of each text alone.

    Attributes:
        texts: The texts, the shortest first.
        alone: The vectors of single texts that were needed so far, by the text's number.
        vectors: Number of compared vectors.
        differences: The vectors that differ.
    """

    def __init__(self, encoder: SentenceEncoder, texts: Iterable[str], seed: int = 0, *others: SentenceEncoder) -> None:
        """Start without any comparison. Single texts are encoded with the encoder's current settings.

        Args:
            encoder: It encodes single texts, and batchings in turn with the others.
            texts: The texts.
            seed: The seed of the batchings.
            *others: Encoders that must give the same bits.
        """
        self.texts = sorted(dict.fromkeys(texts), key=len)
        self.alone: dict[int, Array] = {}
        self.vectors = 0
        self.differences: list[Difference] = []
        self._encoder = encoder
        self._encoders = (encoder, *others)
        self._seed = seed
        self._settings = (encoder.num_threads, encoder.max_batch_tokens)

    def add(self, number: int) -> None:
        """Compare the vectors of batching ``number``."""
        batching = draw(len(self.texts), number, self._seed)
        vectors = encode(self._encoders[number % len(self._encoders)], self.texts, batching)
        for i, vector in zip(batching.rows, vectors, strict=True):
            self.vectors += 1
            if bits := differing_bits(vector, self._vector_alone(i)):
                self.differences.append(Difference(number, self.texts[i], bits))

    def _vector_alone(self, i: int) -> Array:
        if i not in self.alone:
            self._encoder.num_threads, self._encoder.max_batch_tokens = self._settings
            self.alone[i] = self._encoder.encode(self.texts[i])
        return self.alone[i]


def run(options: argparse.Namespace, model: Path, all_texts: Iterable[str]) -> dict[str, Any]:
    """Return the results of one model."""
    names = native.available() if options.kernels == "all" else (options.kernels,)
    if not names:
        raise SystemExit("--kernels all needs native kernels; there are none on this machine")
    encoders = [SentenceEncoder(model, on_truncate="ignore", kernels=name) for name in names]
    comparison = Comparison(encoders[0], all_texts, options.seed, *encoders[1:])
    start = shown = time.monotonic()
    for number in range(options.batchings):
        comparison.add(number)
        now = time.monotonic()
        if now - shown > 10 or number + 1 == options.batchings:
            shown = now
            print(
                f"{number + 1:6} of {options.batchings} batchings, {comparison.vectors} vectors of "
                f"{len(comparison.alone)} texts, {len(comparison.differences)} differ; {now - start:.0f} s",
                flush=True,
            )
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": f"python tools/invariance.py {without_folders(' '.join(sys.argv[1:]))}",
        "commit": commit(),
        "model": model.resolve().name,
        "processor": processor(),
        "kernels": [encoder.kernels for encoder in encoders],
        "blas": blas_name(),
        "numpy": np.__version__,
        "minibert": minibert.__version__,
        "seed": options.seed,
        "batchings": options.batchings,
        "texts": len(comparison.alone),
        "vectors": comparison.vectors,
        "differing_vectors": len(comparison.differences),
        "differing_bits": sum(difference.bits for difference in comparison.differences),
        "first_differences": [difference._asdict() for difference in comparison.differences[:20]],
        "seconds": round(time.monotonic() - start, 1),
    }


def run_seeded(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of each card."""
    words = full_vocabulary(5_000)
    texts = ["", *made_up_texts(words, 300, 24), *(" ".join(made_up_texts(words, n, 12, seed=n)) for n in (10, 20, 40))]
    texts += [f"<pad> {text} <pad><pad> <mask> {text} [PAD]" for text in made_up_texts(words, 40, 6, seed=1)]
    results = []
    for card in options.seeded.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            repo = write_seeded_repo(Path(scratch) / card, card, layers=options.layers)
            facts = {"layers": options.layers, "pooling": (CARDS | FAMILIES)[card]["pooling_mode"]}
            results.append(run(options, repo, texts) | facts)
    return results


def run_on(core: str) -> int:
    """Run this command in a new process where OpenBLAS uses its kernels for ``core``, and return the exit status."""
    environment = {**os.environ, "OPENBLAS_CORETYPE": core}
    status = subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    if status == -signal.SIGILL:
        raise SystemExit(f"this processor cannot run OpenBLAS's kernels for {core}: it met an illegal instruction")
    return status


def main() -> int:
    """Write the results file, and return 1 if any bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a local model folder")
    parser.add_argument("texts", type=Path, nargs="*", help="files with one text per line")
    parser.add_argument("--seeded", metavar="CARDS", help="cards of tests/cards.json, separated by commas")
    parser.add_argument("--layers", type=int, help="number of layers of the seeded models (default: the card's)")
    parser.add_argument("--out", type=Path, required=True, help="the results file, JSON")
    parser.add_argument("--batchings", type=int, default=10_000, help="number of batchings (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the batchings (default: 0)")
    parser.add_argument("--kernels", help='the kernels, such as numpy or avx2, or "all" (default: the best)')
    parser.add_argument("--core", help="the processor whose kernels OpenBLAS uses, such as SkylakeX or Haswell")
    options = parser.parse_args()

    if options.core and os.environ.get("OPENBLAS_CORETYPE") != options.core:
        return run_on(options.core)
    if options.core and options.core.lower() not in blas_name().lower():
        raise SystemExit(f"numpy's BLAS must have its kernels for {options.core}; it is {blas_name()}")
    if options.seeded:
        results = run_seeded(options)
    elif options.texts:
        results = [run(options, options.model, (text for path in options.texts for text in read_texts(path)))]
    else:
        parser.error("give MODEL and TEXTS, or --seeded")
    content = results if options.seeded else results[0]
    options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if any(each["differing_vectors"] for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
