"""``minibert index``: write texts and their vectors to a file for ``minibert search``."""

import argparse
import sys

from minibert.cli.encoder import open_encoder, shows_progress
from minibert.cli.files import output_file, refuse_own_input
from minibert.cli.texts import read_texts
from minibert.encoder import SentenceEncoder
from minibert.index import SearchIndex


def run(options: argparse.Namespace) -> None:
    """Write the index, completely or not at all."""
    refuse_own_input(options.output, options.input)
    # Create the file first: a wrong folder must fail before hours of encoding.
    with output_file(options.output, overwrite=options.overwrite) as path:
        index, _ = build(options)
        index.save(path)
    if sys.stderr.isatty():
        sys.stderr.write(f"minibert: wrote {len(index):,} text{'s' * (len(index) > 1)} to {options.output}\n")


def build(options: argparse.Namespace) -> tuple[SearchIndex, SentenceEncoder]:
    """Return an index of the texts of the command line, with their line numbers; and its encoder.

    Raises:
        ValueError: A line cannot be used, or all are blank.
    """
    lines = read_texts(options.input, options.input_format)
    texts = {number: text for number, text in enumerate(lines, 1) if text.strip()}
    if not texts:
        name = "standard input" if options.input == "-" else options.input
        found = f"{len(lines)} blank ones" if lines else "none"
        raise ValueError(f"{name} must have a text to search, one a line or a JSON object; it has {found}.")
    encoder = open_encoder(options)
    index = SearchIndex.build(
        encoder,
        list(texts.values()),
        numbers=list(texts),
        document_prompt=options.document_prompt,
        query_prompt=options.query_prompt,
        batch_size=options.batch_size,
        show_progress_bar=shows_progress(len(texts), options),
    )
    return index, encoder
