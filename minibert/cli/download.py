"""``minibert download``: download the files of a hub repo to the cache."""

import argparse
import sys

from minibert.cli.files import model_folder


def run(options: argparse.Namespace) -> None:
    """Download all files of the model and print its folder."""
    sys.stdout.write(f"{model_folder(options)}\n")
