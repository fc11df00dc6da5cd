"""``minibert search``: find the texts that are nearest in meaning to a question."""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Sequence

from minibert.cli.encoder import open_encoder
from minibert.cli.files import refuse_own_input
from minibert.cli.index import build
from minibert.cli.terminal import cut
from minibert.cli.texts import read_questions
from minibert.encoder import SentenceEncoder
from minibert.files.hub import BUILTIN_MODEL
from minibert.index import BUILTIN_NAME, Hit, SearchIndex
from minibert.repo import ModelRepo
from minibert.safe.escapes import printable, printable_json


def run(options: argparse.Namespace) -> None:
    """Answer the questions: all from the command line together, or those from standard input one by one."""
    refuse_own_input(None, options.input if options.index is None else options.index)
    index, encoder = build(options) if options.index is None else _load(options)
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal and not options.json else None
    # If the user types the question in this terminal, it is already above its answer.
    headed = len(options.questions) > 1 or not (options.questions or (is_terminal and sys.stdin.isatty()))
    for number, (question, hits) in enumerate(_answers(index, encoder, options)):
        if options.json:
            lines = list(_records(question, hits))
        else:
            lines = list(_lines(hits))
            if headed:
                lines = [*([""] if number else []), printable(question), *(f"  {line}" for line in lines)]
        for line in lines:
            sys.stdout.buffer.write(f"{line if width is None else cut(line, width)}\n".encode())
        sys.stdout.buffer.flush()


def _load(options: argparse.Namespace) -> tuple[SearchIndex, SentenceEncoder]:
    """Return the index that the command line names, and an encoder for questions to it.

    Raises:
        IndexFileError: The file cannot be used.
        ValueError: The encoder and the index have different models.
    """
    index = SearchIndex.load(options.index)
    others = index.model != BUILTIN_NAME and index.fingerprint != ModelRepo.open(BUILTIN_MODEL).fingerprint
    if options.model is None and others:
        raise ValueError(
            f"{options.index} was made with the model {index.model!r}, which no file may load by its name: "
            "name it with --model if you trust it."
        )
    encoder = open_encoder(options)
    index.check_model(encoder)
    if options.query_prompt is not None:
        index = dataclasses.replace(index, query_prompt=options.query_prompt)
    return index, encoder


def _answers(
    index: SearchIndex, encoder: SentenceEncoder, options: argparse.Namespace
) -> Iterator[tuple[str, list[Hit]]]:
    """Yield each question with its hits."""
    if options.questions:
        yield from zip(options.questions, index.search(encoder, options.questions, options.top_k), strict=True)
        return
    for question in read_questions():
        yield question, index.search(encoder, question, options.top_k)[0]


def _records(question: str, hits: Sequence[Hit]) -> Iterator[str]:
    """Yield a JSON object for each hit."""
    for rank, hit in enumerate(hits, 1):
        record = {"query": question, "rank": rank, "score": hit.score, "line": hit.number, "text": hit.text}
        yield printable_json(json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def _lines(hits: Sequence[Hit]) -> Iterator[str]:
    """Yield score, number and text of each hit, in columns."""
    scores = [f"{hit.score:z.3f}" for hit in hits]
    numbers = [str(hit.number) for hit in hits]
    of_scores, of_numbers = (max(map(len, column)) for column in (scores, numbers))
    for score, number, hit in zip(scores, numbers, hits, strict=True):
        yield f"{score:>{of_scores}}  {number:>{of_numbers}}  {printable(hit.text)}"
