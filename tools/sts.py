"""Print the Spearman correlation of a model's cosines with the scores of a semantic textual similarity benchmark.

    python tools/sts.py MODEL PAIRS.csv [PAIRS.csv ...] [--compare]

Each row of a file is: sentence, sentence, score. With --compare, sentence-transformers also encodes the sentences, and
the tool prints the largest absolute difference of any number in any vector. Cosines are computed in float64. The tool
needs SciPy, which is part of the ``reference`` extra.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibert import SentenceEncoder
from minibert.typing import Array


class Pairs(NamedTuple):
    """A benchmark: two lists of sentences, and the similarity score that people gave each pair."""

    left: list[str]
    right: list[str]
    scores: list[float]


def read_pairs(path: Path) -> Pairs:
    """Return the rows of a benchmark file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return Pairs([row[0] for row in rows], [row[1] for row in rows], [float(row[2]) for row in rows])


def spearman(left: Array, right: Array, scores: list[float]) -> float:
    """Return the rank correlation of ``scores`` with the cosines of row pairs, computed in float64."""
    from scipy.stats import spearmanr

    a, b = left.astype(np.float64), right.astype(np.float64)
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(spearmanr(cosines, scores).statistic)


def score(vectors: Array, pairs: Pairs) -> float:
    """Return the correlation. ``vectors`` has all left sentences first, then all right sentences."""
    count = len(pairs.scores)
    return spearman(vectors[:count], vectors[count:], pairs.scores)


def main() -> None:
    """Print one line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local model folder, or a hub id")
    parser.add_argument("pairs", type=Path, nargs="+", help="benchmark files")
    parser.add_argument("--compare", action="store_true", help="also encode with sentence-transformers")
    options = parser.parse_args()

    encoder = SentenceEncoder(options.model)
    for path in options.pairs:
        pairs = read_pairs(path)
        vectors = encoder.encode([*pairs.left, *pairs.right])
        line = f"{path.name}: {len(pairs.scores)} pairs, Spearman {score(vectors, pairs):.6f}"
        if options.compare:
            from sentence_transformers import SentenceTransformer

            peer = SentenceTransformer(options.model, device="cpu").encode([*pairs.left, *pairs.right])
            line += (
                f", sentence-transformers {score(peer, pairs):.6f}, "
                f"largest difference {np.abs(vectors - peer).max():.1e}"
            )
        print(line)


if __name__ == "__main__":
    main()
