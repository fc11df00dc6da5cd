"""The encoder that a command computes with."""

import argparse
import sys

from minibert.encoder import SentenceEncoder


def open_encoder(options: argparse.Namespace) -> SentenceEncoder:
    """Return the encoder that the command line names; where it names none, the built-in one, and say so."""
    encoder = SentenceEncoder(
        options.model,
        revision=options.revision,
        cache_folder=options.cache_folder,
        local_files_only=options.local_files_only,
        device=options.device,
        on_truncate=options.on_truncate,
    )
    if options.model is None:
        width = encoder.get_embedding_dimension()
        sys.stderr.write(f"minibert: using the built-in model (English, {width} dimensions); --model names another\n")
    return encoder


def shows_progress(texts: int, options: argparse.Namespace) -> bool:
    """Return whether to show a progress bar for so many texts: on a terminal, for more than a moment's work."""
    return sys.stderr.isatty() and texts > (options.batch_size or 32)
