"""The encoder that a command computes with."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

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
        dtype=options.dtype,
        num_threads=options.num_threads,
        truncate_dim=options.truncate_dim,
    )
    if options.model is None:
        width = encoder.get_embedding_dimension()
        sys.stderr.write(f"minibert: using the built-in model (English, {width} dimensions); --model names another\n")
    return encoder


def worth_a_bar(options: argparse.Namespace) -> int:
    """Return how many texts are more than a moment's work."""
    return (options.batch_size or 32) + 1


def shows_progress(texts: int | None, options: argparse.Namespace) -> bool:
    """Return whether to show a progress bar for so many texts, or for an unknown number: on a terminal only."""
    return sys.stderr.isatty() and (texts is None or texts >= worth_a_bar(options))


@contextlib.contextmanager
def progress_bar(texts: int | None, options: argparse.Namespace) -> Iterator[Callable[[int], object]]:
    """Give a function to call with a number of texts that are done; it moves a progress bar if one is to be shown."""
    if not shows_progress(texts, options):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=texts, desc="Texts") as bar:
        yield bar.update
