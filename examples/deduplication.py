"""Drop the lines that say what an earlier line has said. Memory does not grow with the number of lines.

    python examples/deduplication.py
    python examples/deduplication.py lines.txt --threshold 0.85 > fewer_lines.txt

``encode_stream`` reads only the texts that it needs for the next vectors. Each vector is compared with those of the
last 10,000 lines that were kept. A line is dropped if its cosine with one of them reaches the threshold.
"""

import argparse
import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from minibert import SentenceEncoder

LINES = """\
The train to Vienna leaves at half past eight.
A man is playing a guitar on the stage.
The train for Vienna departs at 8:30.
Please close the window, it is cold in here.
A man plays the guitar on stage.
The train to Vienna leaves at half past eight.
The museum is free on the first Sunday of the month.
""".splitlines()


def unique(
    lines: Iterable[str], encoder: SentenceEncoder, threshold: float, window: int = 10_000, chunk_size: int = 256
) -> Iterator[str]:
    """Yield the lines whose cosine with each of the last ``window`` yielded lines is below ``threshold``."""
    lines, copy = itertools.tee(lines)  # holds one chunk of lines: the encoder is one chunk ahead
    kept = np.zeros((window, encoder.get_embedding_dimension()), np.float32)
    count = 0
    for vectors in encoder.encode_stream(copy, chunk_size=chunk_size, normalize_embeddings=True):
        for line, vector in zip(itertools.islice(lines, len(vectors)), vectors, strict=True):
            if (kept[:count] @ vector < threshold).all():
                kept[count % window] = vector
                count += 1
                yield line


def main() -> None:
    """Print the lines of a file, or of the sample, without near duplicates."""
    parser = argparse.ArgumentParser(description="Drop the lines that say what an earlier line has said.")
    parser.add_argument("file", nargs="?", type=Path, help="a text file (default: a sample of seven lines)")
    parser.add_argument("--threshold", type=float, default=0.8, help="the least cosine of a duplicate (default: 0.8)")
    options = parser.parse_args()

    with options.file.open(encoding="utf-8") if options.file else contextlib.nullcontext(LINES) as file:
        for line in unique((line.rstrip("\n") for line in file), SentenceEncoder(), options.threshold):
            print(line)


if __name__ == "__main__":
    main()
