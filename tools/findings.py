"""Measure what a model has learned: the findings of docs/walk, on the STS benchmark.

    python tools/findings.py --model builtin --pairs stsb-en-dev.csv --out findings-builtin.json
    python tools/findings.py --model FOLDER --pairs stsb-en-dev.csv --explain 20 --out findings-minilm.json
    python tools/findings.py --model builtin --pairs stsb-en-dev.csv --only word_order layers

FOLDER is a local model folder, such as that of all-MiniLM-L6-v2. Each row of PAIRS is: sentence, sentence, score. Each
finding is a function of this file; its docstring says what it measures. The vector of a text is the mean of its token
vectors. The tool needs SciPy, which is part of the ``reference`` extra.
"""

import argparse
import datetime as dt
import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_work import commit, without_folders
from sts import read_pairs, spearman

import minibert
from minibert import BUILTIN_MODEL, BertModel, SentenceEncoder
from minibert.model import Tap, untapped
from minibert.typing import Array

SEED = 0
#: The largest number of texts that are computed together.
BATCH = 64
#: For the explanations: the largest number of tokens of a text, and the number of random deletions.
MOST_TOKENS, DRAWS = 24, 10


class Corpus:
    """The texts of a benchmark, and a model in float32.

    Attributes:
        pairs: The pairs of texts.
        explain: The number of pairs to explain.
        ids: The token ids of each text, with special tokens.
        encoder: The encoder.
        bert: The same model.
    """

    def __init__(self, model: Path, pairs: Path, explain: int = 200) -> None:
        """Read a model and a benchmark."""
        left, right, self._scores = read_pairs(pairs)
        self.pairs, self.explain = list(zip(left, right, strict=True)), explain
        texts = sorted({*left, *right})
        number = {text: i for i, text in enumerate(texts)}
        self.numbers = np.array([[number[text] for text in pair] for pair in self.pairs])
        self.encoder, self.bert = SentenceEncoder(model), BertModel.from_pretrained(model)
        self.ids = [np.array(self.encoder.tokenizer.encode(text).ids) for text in texts]

    def run(self, tap: Tap = untapped, keep: Iterable[str] = ()) -> Iterator[tuple[Array, Array, dict[str, Array]]]:
        """Yield batches of texts of equal length, so that none is padded: their numbers, token vectors and results.

        Args:
            tap: See :class:`minibert.BertModel`.
            keep: Ends of the names of the results to yield.
        """
        kept: dict[str, Array] = {}

        def keeping(name: str, value: Array) -> Array:
            value = tap(name, value)
            if name.endswith(tuple(keep)):
                kept[name] = value
            return value

        lengths = np.array([len(ids) for ids in self.ids])
        for length in np.unique(lengths):
            which = np.flatnonzero(lengths == length)
            for texts in np.array_split(which, -(-len(which) // BATCH)):
                yield texts, self.bert(np.stack([self.ids[i] for i in texts]), tap=keeping).last_hidden_state, kept

    def vectors(self, tap: Tap = untapped) -> Array:
        """Return the vector of each text, ``(texts, H)``."""
        vectors = np.zeros((len(self.ids), self.bert.config.hidden_size))
        for texts, x, _ in self.run(tap):
            vectors[texts] = x.mean(axis=1)
        return vectors

    @functools.cached_property
    def base(self) -> Array:
        """The vector of each text, of the model as it is."""
        return self.vectors()

    def spearman(self, vectors: Array) -> float:
        """Return the rank correlation of the cosines with the scores of people."""
        left, right = self.numbers.T
        return round(spearman(vectors[left], vectors[right], self._scores), 4)


def zero(end: str) -> Tap:
    """Return a tap that sets the results whose names end in ``end`` to 0."""
    return lambda name, value: np.zeros_like(value) if name.endswith(end) else value


def unit(vectors: Array) -> Array:
    """Return the vectors, scaled to length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def digits(number: float) -> float:
    """Return a number with two significant digits."""
    return float(f"{number:.2g}")


def word_order(corpus: Corpus) -> dict[str, Any]:
    """Measure how much the order of the words matters.

    The Spearman correlation: of the model; without positions; with equal attention to all tokens (scores of 0). The
    cosine of a text with the same text after a shuffle of its words.
    """
    rng, whole = np.random.default_rng(SEED), corpus.ids
    found = {
        "spearman": corpus.spearman(corpus.base),
        "without_positions": corpus.spearman(corpus.vectors(zero("embeddings.positions"))),
        "uniform_attention": corpus.spearman(corpus.vectors(zero(".scores"))),
    }
    corpus.ids = [np.concatenate([ids[:1], rng.permutation(ids[1:-1]), ids[-1:]]) for ids in whole]
    cosines = (unit(corpus.base) * unit(corpus.vectors())).sum(axis=1)
    corpus.ids = whole
    return {**found, "shuffled_mean": round(cosines.mean(), 4), "shuffled_lowest": round(cosines.min(), 4)}


def stop_words(corpus: Corpus) -> dict[str, Any]:
    """Measure which tokens the last LayerNorm makes small.

    ``drain``: the dimensions where its scale is less than a tenth of the median. ``in_drain``: the part of a token's
    squared length in them, after the normalization and before the scale. ``share``: what a token adds to the vector of
    its text, in its direction; 1 is an equal part. Means over all occurrences of a token; "frequent": over the 50 most
    frequent tokens; "rare": over those that occur once.
    """
    scale = np.abs(corpus.bert.params.layers[-1].feed_forward.norm.weight)
    drain = np.flatnonzero(scale < np.median(scale) / 10)
    last = f"layers.{corpus.bert.config.num_hidden_layers - 1}"
    sums = np.zeros((2, corpus.bert.config.vocab_size))
    for texts, x, kept in corpus.run(keep=(f"{last}.attended", f"{last}.outer")):
        total = np.add(*kept.values())
        squares = np.square(total - total.mean(axis=-1, keepdims=True))
        mean = x.mean(axis=1, keepdims=True)
        ids = np.stack([corpus.ids[i] for i in texts])
        np.add.at(sums[0], ids, squares[..., drain].sum(axis=-1) / squares.sum(axis=-1))
        np.add.at(sums[1], ids, (x * mean).sum(axis=-1) / np.square(mean).sum(axis=-1))
    counts, special = Counter(np.concatenate(corpus.ids).tolist()), set(corpus.ids[0][[0, -1]].tolist())
    words = [i for i, _ in counts.most_common() if i not in special]
    groups = {"frequent": words[:50], "rare": [i for i in words if counts[i] == 1]}
    groups |= {corpus.encoder.tokenizer.id_to_token(i): [i] for i in (*sorted(special), *words[:12])}
    means = {
        name: np.mean([sums[:, i] / counts[i] for i in of], axis=0).round(3).tolist() for name, of in groups.items()
    }
    return {
        "drain": {int(i): digits(scale[i]) for i in drain},
        "median_scale": round(float(np.median(scale)), 3),
        "in_drain": {name: mean[0] for name, mean in means.items()},
        "share": {name: mean[1] for name, mean in means.items()},
    }


def layers(corpus: Corpus) -> dict[str, Any]:
    """Measure the vectors of each layer, the embeddings first.

    The Spearman correlation with mean and max pooling, and the mean cosine of two texts with mean pooling.
    """
    mean, largest = (np.zeros((corpus.bert.config.num_hidden_layers + 1, *corpus.base.shape)) for _ in range(2))
    for texts, _, kept in corpus.run(keep=(".x",)):
        for i, x in enumerate(kept.values()):
            mean[i, texts], largest[i, texts] = x.mean(axis=1), x.max(axis=1)
    count = len(corpus.ids)
    sums = [unit(each).sum(axis=0) for each in mean]  # its square is the sum of the cosines of all ordered pairs
    return {
        "mean": [corpus.spearman(each) for each in mean],
        "max": [corpus.spearman(each) for each in largest],
        "cosine_of_two_texts": [round((each @ each - count) / (count * (count - 1)), 4) for each in sums],
    }


def heads(corpus: Corpus) -> dict[str, Any]:
    """Measure where words attend to.

    ``previous``: each head's mean weight of the previous word; ``previous_masked``: the same if each word is [MASK].
    ``cls``: each layer's mean weight of the first token; ``cls_norm``: the same of weights times the lengths of
    V_j W_O, which sum to 1 (Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102). ``equal``: the mean of 1 / S.
    """
    config, mask = corpus.bert.config, corpus.encoder.tokenizer.token_to_id("[MASK]")
    shape = config.num_hidden_layers, config.num_attention_heads
    sums = {name: np.zeros(shape) for name in ("previous", "previous_masked", "cls", "cls_norm")}
    words, pairs, equal = 0, 0, 0.0  # words, words after a word, and the sum of 1 / S
    for texts, _, kept in corpus.run(keep=(".weights", ".V")):
        row = corpus.ids[texts[0]].copy()
        row[1:-1] = mask
        masked = corpus.bert(row[None], output_attentions=True).attentions or ()
        inner, after = np.arange(1, len(row) - 1), np.arange(2, len(row) - 1)
        words, pairs = words + len(texts) * len(inner), pairs + len(texts) * len(after)
        equal += len(texts) * len(inner) / len(row)
        for i, layer in enumerate(corpus.bert.params.layers):
            weights, V = kept[f"layers.{i}.weights"], kept[f"layers.{i}.V"]  # noqa: N806
            output = layer.attention.output.weight.reshape(config.hidden_size, shape[1], -1)  # (H, h, d)
            arriving = weights * np.linalg.norm(np.einsum("bhsd,ohd->bhso", V, output), axis=-1)[:, :, None]
            arriving /= arriving.sum(axis=-1, keepdims=True)
            sums["previous"][i] += weights[:, :, after, after - 1].sum(axis=(0, 2))
            sums["previous_masked"][i] += len(texts) * masked[i][0][:, after, after - 1].sum(axis=1)
            sums["cls"][i] += weights[:, :, inner, 0].sum(axis=(0, 2))
            sums["cls_norm"][i] += arriving[:, :, inner, 0].sum(axis=(0, 2))
    return {
        **{name: (sums[name] / pairs).round(4).tolist() for name in ("previous", "previous_masked")},
        **{name: (sums[name].mean(axis=1) / words).round(4).tolist() for name in ("cls", "cls_norm")},
        "equal": round(equal / words, 4),
    }


def dead_dimensions(corpus: Corpus) -> dict[str, Any]:
    """Find the dimensions that are 0 in all vectors of length 1, or below 1e-6, and the last LayerNorm there.

    ``largest``: the largest absolute number of a vector in these dimensions; ``mean``: the mean one elsewhere.
    ``scale`` and ``bias``: the largest absolute ones there; ``smallest_other_scale``: the smallest one elsewhere.
    """
    norm, sizes = corpus.bert.params.layers[-1].feed_forward.norm, np.abs(unit(corpus.base))
    dead = sizes.max(axis=0) < 1e-6
    return {
        "dimensions": np.flatnonzero(dead).tolist(),
        "largest": digits(sizes[:, dead].max(initial=0)),
        "mean": digits(sizes[:, ~dead].mean()),
        "scale": digits(np.abs(norm.weight[dead]).max(initial=0)),
        "bias": digits(np.abs(norm.bias[dead]).max(initial=0)),
        "smallest_other_scale": digits(np.abs(norm.weight[~dead]).min()),
    }


def explanations(corpus: Corpus) -> dict[str, Any]:
    """Measure ``SentenceEncoder.explain``, on random pairs of texts of at most 24 tokens.

    ``error`` and ``rest``: median and largest absolute value. ``fall``: how much the cosine falls without k = 1, 2, 3
    tokens of one text: those with the largest shares of ``words``, or of ``vectors``, or the largest ``without_token``,
    or random ones. Means over both texts of all pairs. ``ratio``: that fall divided by the fall without random tokens.
    ``same_word``: how often the largest share of a token that both texts have is with the same token.
    """
    rng, names = np.random.default_rng(SEED), ("words", "vectors", "without_token")
    short = [i for i, pair in enumerate(corpus.numbers) if max(len(corpus.ids[text]) for text in pair) <= MOST_TOKENS]
    chosen, errors, falls, same = rng.permutation(short)[: corpus.explain], [], [], []
    for i in chosen:
        why = corpus.encoder.explain(*corpus.pairs[i])
        if why.vectors is None:
            raise SystemExit(f"the explanations must have the shares of token vectors; {why.why_no_vectors}")
        errors.append((abs(why.error), abs(why.rest)))
        equal = (why.a.ids[:, None] == why.b.ids) & ~why.a.special[:, None]
        same += [
            [equal[row, shares[row].argmax()] for shares in (why.words, why.vectors)]
            for row in np.where(equal.any(1))[0]
        ]
        for axis, text, other in ((1, why.a, why.b), (0, why.b, why.a)):
            tokens = np.flatnonzero(~text.special)
            rankings = why.words.sum(axis=axis), why.vectors.sum(axis=axis), why.without_token[1 - axis]
            best = [tokens[np.argsort(-each[tokens])] for each in rankings]
            for k in (1, 2, 3):
                deleted = [*(order[:k] for order in best), *(rng.permutation(tokens)[:k] for _ in range(DRAWS))]
                x = corpus.bert(np.stack([np.delete(text.ids, each) for each in deleted])).last_hidden_state
                falls.append(unit(text.pooled) @ unit(other.pooled) - unit(x.mean(axis=1)) @ unit(other.pooled))
    *ranked, random = np.split(np.reshape(falls, (-1, 3, 3 + DRAWS)).mean(axis=0), [1, 2, 3], axis=1)  # k = 1, 2, 3
    fall = dict(zip((*names, "random"), [each.mean(axis=1) for each in (*ranked, random)], strict=True))
    (error, rest), (most_error, most_rest) = np.median(errors, axis=0), np.max(errors, axis=0)
    return {
        "pairs": len(chosen),
        "error": {"median": digits(error), "largest": digits(most_error)},
        "rest": {"median": digits(rest), "largest": digits(most_rest)},
        "fall": {name: each.round(4).tolist() for name, each in fall.items()},
        "ratio": {name: (fall[name] / fall["random"]).round(2).tolist() for name in names},
        "same_word": dict(zip(names, np.mean(same, axis=0).round(3).tolist(), strict=False)),
    }


FINDINGS = {each.__name__: each for each in (word_order, stop_words, layers, heads, dead_dimensions, explanations)}


def main() -> None:
    """Print the findings, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help='a local model folder, or "builtin" (default)')
    parser.add_argument("--pairs", type=Path, required=True, help="the benchmark: a .csv of sentence, sentence, score")
    parser.add_argument("--only", nargs="+", choices=FINDINGS, default=[*FINDINGS], help="the findings (default: all)")
    parser.add_argument("--explain", type=int, default=200, help="number of pairs to explain (default: 200)")
    parser.add_argument("--out", type=Path, help="the record, JSON")
    options = parser.parse_args()

    corpus = Corpus(
        BUILTIN_MODEL if options.model == "builtin" else Path(options.model), options.pairs, options.explain
    )
    record: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": f"python tools/findings.py {without_folders(' '.join(sys.argv[1:]))}",
        "commit": commit(),
        "minibert": minibert.__version__,
        "numpy": np.__version__,
        "model": {"layers": corpus.bert.config.num_hidden_layers, "fingerprint": corpus.encoder.fingerprint},
        "data": {
            "name": options.pairs.name,
            "sha256": hashlib.sha256(options.pairs.read_bytes()).hexdigest(),
            "pairs": len(corpus.pairs),
            "texts": len(corpus.ids),
            "tokens": sum(map(len, corpus.ids)),
        },
    }
    for name in options.only:
        record[name] = FINDINGS[name](corpus)
        print(name, *(f"  {key}: {json.dumps(value)}" for key, value in record[name].items()), sep="\n", flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
