"""The texts of tools/bench.py: which texts a model encodes, and how much work they are."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench_peers import read_json, tokenize


class Workload(NamedTuple):
    """The texts of one pass of a model.

    Attributes:
        texts: Distinct texts.
        tokens: Number of tokens after truncation at the model's limit, with special tokens, without padding.
        gflop: The useful operations for them; see :func:`count_flops`.
    """

    texts: list[str]
    tokens: int
    gflop: float


def count_flops(config: Mapping[str, int], lengths: Iterable[int]) -> int:
    """Return the operations of BERT's matrix products for texts of these lengths, with the complete last layer."""
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    per_token = 2 * (4 * hidden**2 + 2 * hidden * inner)
    return layers * sum(per_token * length + 4 * hidden * length**2 for length in lengths)


def read_texts(path: Path) -> list[str]:
    """Return the distinct lines of a file. Repeated texts would favour encoders that compute equal texts once."""
    return list(dict.fromkeys(filter(None, path.read_text("utf-8").split("\n"))))


def thin(lengths: Sequence[int], every: int) -> list[int]:
    """Return the positions of one text in ``every``, spread evenly over the lengths."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    every = min(every, len(lengths))
    return sorted(by_length[every // 2 :: every])


def make_workload(model: Path, texts: list[str], every: int) -> Workload:
    """Return one text in ``every``, and the number of tokens and operations for them."""
    rows = tokenize(model)(texts)
    chosen = thin([len(row) for row in rows], every)
    lengths = [len(rows[i]) for i in chosen]
    flops = count_flops(read_json(model / "config.json"), lengths)
    return Workload([texts[i] for i in chosen], sum(lengths), flops / 1e9)
