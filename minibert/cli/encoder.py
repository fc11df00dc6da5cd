"""The encoder of a command."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

from minibert.encoder import SentenceEncoder


def open_encoder(options: argparse.Namespace) -> SentenceEncoder:
    """Return the encoder that the command line names. If it names none, print a note and return the built-in one."""
    encoder = SentenceEncoder(
        options.model,
        revision=options.revision,
        cache_folder=options.cache_folder,
        local_files_only=options.local_files_only,
        device=options.device,
        on_truncate=options.on_truncate,
        dtype=options.dtype,
        num_threads=options.num_threads,
        truncate_dim=options.truncate_dim,
    )
    if options.model is None:
        width = encoder.get_embedding_dimension()
        sys.stderr.write(f"minibert: using the built-in model (English, {width} dimensions); --model names another\n")
    return encoder


def worth_a_bar(options: argparse.Namespace) -> int:
    """Return the number of texts from which a progress bar is useful."""
    return (options.batch_size or 32) + 1


def shows_progress(texts: int | None, options: argparse.Namespace) -> bool:
    """Return whether to show a progress bar for this (or an unknown) number of texts. Only on a terminal."""
    return sys.stderr.isatty() and (texts is None or texts >= worth_a_bar(options))


@contextlib.contextmanager
def progress_bar(texts: int | None, options: argparse.Namespace) -> Iterator[Callable[[int], object]]:
    """Give a function that takes a number of completed texts and moves the progress bar, if there is one."""
    if not shows_progress(texts, options):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=texts, desc="Texts") as bar:
        yield bar.update
