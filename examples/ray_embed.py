"""Vectors of a file's lines with Ray Data, on all machines of a cluster.

Needs ``pip install "minibert[ray]"``.

    python examples/ray_embed.py
    python examples/ray_embed.py --file notes.txt --output vectors --actors 4
"""

import argparse
import tempfile
from pathlib import Path

import ray
from ray.data import ActorPoolStrategy, DataContext

from minibert.jobs import EmbedBatch


def main() -> None:
    """Write a folder with Parquet files and print what is in it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--file", type=Path, default=Path(__file__).parent / "help_pages.txt")
    parser.add_argument("--output", type=Path, default=Path(tempfile.mkdtemp()) / "vectors")
    parser.add_argument("--actors", type=int, default=1, help="processes that encode, each on one core")
    options = parser.parse_args()

    # Ray needs a core for reading. If the actors take all, it waits for ever.
    ray.init(num_cpus=options.actors + 1, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().execution_options.preserve_order = True

    texts = ray.data.read_text(str(options.file))  # a column "text"; blank lines are left out
    vectors = texts.map_batches(
        EmbedBatch,
        batch_format="pyarrow",  # the column is then a plain fixed_size_list, for every reader of Parquet
        batch_size=4096,
        num_cpus=1,  # EmbedBatch uses as many threads
        compute=ActorPoolStrategy(size=options.actors),  # each loads the model once
    )
    vectors.write_parquet(str(options.output))

    result = ray.data.read_parquet(str(options.output))
    print(f"{result.count()} lines")
    print(f"embedding: {result.schema().base_schema.field('embedding').type}")


if __name__ == "__main__":
    main()
