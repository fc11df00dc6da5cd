"""Search the lines of a text file by meaning.

    python examples/semantic_search.py
    python examples/semantic_search.py "How do I change my password?" --file examples/help_pages.txt --top-k 2

The index is made once, saved, and loaded again. To search again later, keep the file and load it.
"""

import argparse
import tempfile
from pathlib import Path

from minibert import SearchIndex, SentenceEncoder

HELP_PAGES = Path(__file__).with_name("help_pages.txt")


def build(encoder: SentenceEncoder, path: Path) -> SearchIndex:
    """Return an index of the lines of a file, under their line numbers; empty lines are left out."""
    lines = path.read_text("utf-8").splitlines()
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    return SearchIndex.build(encoder, [lines[number - 1] for number in numbers], numbers=numbers)


def main() -> None:
    """Print the best lines for a question."""
    parser = argparse.ArgumentParser(description="Search the lines of a text file by meaning.")
    parser.add_argument("question", nargs="?", default="When do I get my money back?")
    parser.add_argument("--file", type=Path, default=HELP_PAGES)
    parser.add_argument("--top-k", type=int, default=3)
    options = parser.parse_args()

    encoder = SentenceEncoder()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "help.index"
        build(encoder, options.file).save(saved)
        index = SearchIndex.load(saved)

    print(f"{len(index)} lines, {index.vectors.shape[1]} numbers for each")
    for hit in index.search(encoder, options.question, options.top_k)[0]:
        print(f"{hit.score:.3f}  line {hit.number}: {hit.text}")


if __name__ == "__main__":
    main()
