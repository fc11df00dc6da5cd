"""``minibert explain``: what a vector is made of, or why two texts are similar; on the terminal, or as a page."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minibert.cli.encoder import open_encoder
from minibert.cli.files import output_file
from minibert.cli.heat_map import heat_map, strongest, width_of
from minibert.encoder import SentenceEncoder
from minibert.safe.escapes import printable
from minibert.study import Similarity, Trace
from minibert.study.page import page
from minibert.typing import Array

#: What the map of one text needs, and that of two.
_ONE = ("embeddings.*", *(f"layers.*.{name}" for name in ("heads", "multihead", "attended", "outer", "x")), "modules.*")
_TWO = ("embeddings.x", "layers.*.x", "modules.*")
#: Number of pairs that are listed if the map is too large, and the most rows of a map.
_LISTED, _ROWS = 12, 40


def run(options: argparse.Namespace) -> None:
    """Explain one text, or two."""
    if options.html is not None:
        with output_file(options.html, overwrite=options.overwrite, option="--html") as new:  # refused before the work
            encoder, traces, similarity = _explained(options)
            new.write_text(page(traces, similarity, name=_name(encoder)), "utf-8")
        sys.stderr.write(f"minibert: wrote {printable(str(options.html))}\n")
        return
    _, traces, similarity = _explained(options)
    lines = _vector(traces[0]) if similarity is None else _similarity(similarity)
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())


def _explained(options: argparse.Namespace) -> tuple[SentenceEncoder, list[Trace], Similarity | None]:
    """Return the encoder, the trace of each text, and why they are similar if there are two."""
    encoder = open_encoder(options)
    texts = [text for text in (options.text, options.other) if text is not None]
    keep = "*" if options.html is not None else _ONE if len(texts) == 1 else _TWO
    traces = [encoder.trace(text, keep=keep, prompt=options.prompt) for text in texts]
    return encoder, traces, encoder.explain(*traces) if len(traces) == 2 else None


def _similarity(similarity: Similarity) -> Iterator[str]:
    """Yield the lines about two texts: the score, and a map of pairs of words or, for long texts, of token vectors."""
    a, b = similarity.a, similarity.b
    yield f"{similarity.score:z.4f}  {similarity.function} of the two vectors"
    if similarity.words_are_quick:
        yield f"{similarity.words.sum():z.4f}  from pairs of words"
        yield f"{similarity.rest:z.4f}  from what the texts share without their words"
        yield f"{similarity.error:z.4f}  error of this explanation"
        own = [np.flatnonzero(~trace.fixed) for trace in (a, b)]
        yield from _map(a, b, own, similarity.words)
    elif similarity.vectors is not None:
        yield f"{_too_long(a, b)} These are"
        yield "pairs of token vectors of the last layer. Each already has something of its whole text."
        yield from _map(a, b, [np.arange(len(trace.ids)) for trace in (a, b)], similarity.vectors)
    else:
        yield f"{_too_long(a, b)} There are no"
        yield f"shares of token vectors, because {similarity.why_no_vectors}."
    if similarity.by_layer is not None:
        yield ""
        yield f"by layer: {' '.join(f'{cosine:z.3f}' for cosine in similarity.by_layer)}  (cosine, embeddings first)"
        if similarity.function == "cosine" and abs(similarity.by_layer[-1] - similarity.score) > 1e-6:
            yield "Other modules and truncation are left out here, so the last number is not the score."


def _too_long(a: Trace, b: Trace) -> str:
    return f"Pairs of words of {len(a.ids)} and {len(b.ids)} tokens would take long with this model."


def _map(a: Trace, b: Trace, own: list[Array], shares: Array) -> Iterator[str]:
    rows, columns = ([printable(trace.tokens[i]) for i in kept] for trace, kept in zip((a, b), own, strict=True))
    yield ""
    if not rows or not columns:
        yield "A text without words has nothing to explain."
        return
    yield from _fitting(rows, columns, 100 * shares[np.ix_(*own)])
    yield ""
    total = 100 * shares.sum()
    yield f"in hundredths; all pairs together {total:z.1f}; a negative number pulls the texts apart"


def _vector(trace: Trace) -> Iterator[str]:
    """Yield the lines about one text: what each part of the model added to its vector at each token, in percent."""
    yield f"{len(trace.vector)} dimensions, length {np.linalg.norm(trace.vector):.3f}, from {len(trace.ids)} tokens"
    yield ""
    if why := trace.model.why_not_pooled():
        yield f"The vector cannot be divided into parts: {why}."
        return
    groups: dict[str, Array] = {}
    for name, share in trace.shares().items():
        part, *number = name.split(".")[:3]
        label = f"layer {number[0]} {'attention' if number[1] == 'heads' else 'feed-forward'}" if number else part
        groups[label] = groups.get(label, 0) + 100 * share
    yield from _fitting(list(groups), [printable(token) for token in trace.tokens], np.stack(list(groups.values())))
    yield ""
    yield "what each part of the model added to the pooled vector at each token, in percent; all together 100"


def _fitting(rows: list[str], columns: list[str], values: Array) -> Iterator[str]:
    """Yield a map, or a list of the largest numbers if the map has many rows or is wider than the terminal."""
    lines = heat_map(rows, columns, values, colours=False)
    if len(rows) <= _ROWS and width_of(lines) <= shutil.get_terminal_size().columns:
        yield from heat_map(rows, columns, values, colours=_colours())
    else:
        count = min(_LISTED, values.size)
        yield f"the {count} largest of {values.size} numbers; in brackets, the places of equal tokens"
        yield from strongest(_distinct(rows), _distinct(columns), values, _LISTED)


def _distinct(names: list[str]) -> list[str]:
    """Return the names; those that occur more than once have their place, from 0."""
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names)]


def _colours() -> bool:
    """Return whether to print colours: on a terminal, unless NO_COLOR (https://no-color.org) forbids them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _name(encoder: SentenceEncoder) -> str:
    """Return the name of the model for the page: without the folders of this machine."""
    path = encoder.get_params()["model_name_or_path"]
    return "the built-in model" if path is None else Path(path).resolve().name if Path(path).exists() else str(path)
