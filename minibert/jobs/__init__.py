"""Jobs over files with millions of texts, and batches for engines such as Ray Data and Spark.

A job writes shards. It can be stopped at any time. The same call continues it. Its result has the same bytes as that of
a job that was never stopped.

    >>> import minibert.jobs
    >>> manifest = minibert.jobs.embed_files(encoder, "data/*.jsonl", "vectors")  # doctest: +SKIP
    >>> minibert.jobs.verify("vectors")["rows"]  # doctest: +SKIP
    1000000

pyarrow is imported only for Parquet and Arrow: ``pip install "minibert[jobs]"``.
"""

from minibert.jobs.batches import EmbedBatch, embed_partitions
from minibert.jobs.folder import verify
from minibert.jobs.run import Progress, embed_files

__all__ = ["EmbedBatch", "Progress", "embed_files", "embed_partitions", "verify"]
