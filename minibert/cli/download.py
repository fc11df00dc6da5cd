"""``minibert download``: the files of a hub repo, into the cache."""

import argparse
import sys

from minibert.cli.files import model_folder


def run(options: argparse.Namespace) -> None:
    """Print the folder of the model, whose files are then all there."""
    sys.stdout.write(f"{model_folder(options)}\n")
