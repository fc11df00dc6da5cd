"""Batches of an engine such as Ray Data, daft, datasets or Spark: their texts become vectors.

Neither the engines nor pyarrow are imported here. Each worker process loads a model once.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from minibert.encoder import SentenceEncoder
from minibert.inputs import require_choice
from minibert.jobs.tables import pyarrow
from minibert.typing import Array, Float, OnTruncate, PathLike

#: The encoders of this process by the arguments of :func:`_encoder`.
_ENCODERS: dict[tuple[object, ...], SentenceEncoder] = {}
_LOCK = threading.Lock()


class EmbedBatch:
    """A function of a batch, for engines that call a function or a class on batches of rows.

    It pickles as its arguments. The model is loaded with the first batch in each process.

    Example:
        >>> embed = EmbedBatch()
        >>> embed({"text": ["A man is eating food.", "A horse."]})["embedding"].shape
        (2, 128)
    """

    def __init__(
        self,
        model: PathLike | None = None,
        *,
        column: str = "text",
        output: str = "embedding",
        kind: Literal["query", "document"] | None = None,
        normalize: bool = False,
        truncate_dim: int | None = None,
        on_truncate: OnTruncate = "ignore",
        num_threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """Keep the arguments.

        Args:
            model: A folder that every machine has, or a hub repo id; None for the built-in model.
            column: The column of texts.
            output: The column of vectors. It replaces a column with this name.
            kind: ``"query"`` or ``"document"`` for the prompt of ``encode_query`` or ``encode_document``.
            normalize: Whether to scale the vectors to length 1.
            truncate_dim: As in :class:`~minibert.SentenceEncoder`.
            on_truncate: As there. By default, there are no warnings: each worker would log its own.
            num_threads: As there. By default, the number of cores that Ray or Spark assigned to the worker.
            device: As there.

        Raises:
            ValueError: There is no such kind.
        """
        require_choice("kind", kind, ("query", "document", None))
        self.column, self.output, self.kind, self.normalize = column, output, kind, normalize
        self._arguments = (model, truncate_dim, on_truncate, num_threads, device)

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the column of vectors.

        A ``pyarrow`` Table or RecordBatch gets a column ``fixed_size_list<float>[D]``; a pandas DataFrame, a column of
        arrays; a dict of columns, an array ``(N, D)``.

        Raises:
            TypeError: A text is not a string, for example null.
        """
        library = type(batch).__module__.partition(".")[0]
        texts = batch[self.column] if library != "pyarrow" else batch.column(self.column)
        vectors = self._vectors(texts)
        if library == "pyarrow":
            return self._with_column(batch, pyarrow().FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]))
        if library == "pandas":
            return batch.assign(**{self.output: list(vectors)})
        if not isinstance(batch, Mapping):
            raise TypeError(f"a batch must be a pyarrow table, a DataFrame or a dict of columns; it is {type(batch)}.")
        return {**batch, self.output: vectors}

    def with_lists(self, batch: Any) -> Any:
        """Return a ``pyarrow.RecordBatch`` with a column ``list<float>``: Spark refuses lists of a fixed size."""
        pa = pyarrow()
        vectors = self._vectors(batch.column(self.column))
        offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
        return self._with_column(batch, pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel())))

    def _vectors(self, texts: Any) -> Float[Array, "N D"]:
        encoder = _encoder(*self._arguments)
        encode = {"query": encoder.encode_query, "document": encoder.encode_document}.get(
            self.kind or "", encoder.encode
        )
        vectors: Array = encode(texts, show_progress_bar=False, normalize_embeddings=self.normalize)
        return vectors

    def _with_column(self, batch: Any, vectors: Any) -> Any:
        """Return a table or a record batch with one more column."""
        columns = {name: batch.column(name) for name in batch.schema.names} | {self.output: vectors}
        kinds = {field.name: field for field in batch.schema} | {
            self.output: pyarrow().field(self.output, vectors.type)
        }
        return type(batch).from_arrays(list(columns.values()), schema=pyarrow().schema(list(kinds.values())))


def embed_partitions(
    model: PathLike | None = None, *, column: str = "text", output: str = "embedding", **options: Any
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return a function for Spark's ``DataFrame.mapInArrow``.

    It adds a column of type ``array<float>`` at the end.

    Args:
        model: As in :class:`EmbedBatch`.
        column: As there.
        output: As there.
        **options: The other arguments of :class:`EmbedBatch`.
    """
    embed = EmbedBatch(model, column=column, output=output, **options)

    def run(batches: Iterable[Any]) -> Iterator[Any]:
        return map(embed.with_lists, batches)

    return run


def _encoder(
    model: PathLike | None,
    truncate_dim: int | None,
    on_truncate: OnTruncate,
    num_threads: int | None,
    device: str | None,
) -> SentenceEncoder:
    """Return this process's encoder with these arguments."""
    key = (None if model is None else str(model), truncate_dim, on_truncate, num_threads, device)
    with _LOCK:
        if key not in _ENCODERS:
            _ENCODERS[key] = SentenceEncoder(
                model,
                truncate_dim=truncate_dim,
                on_truncate=on_truncate,
                num_threads=num_threads or (_assigned_cores() if device in {None, "cpu"} else None),
                device=device,
            )
        return _ENCODERS[key]


def _assigned_cores() -> int | None:
    """Return the number of cores that Ray or Spark assigned to this process, or None outside of them.

    A worker of Ray may use all cores of the machine, so their number says nothing.
    """
    ray, spark = sys.modules.get("ray"), sys.modules.get("pyspark")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().get_task_id() is not None:
        return max(1, math.floor(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    if spark is not None and hasattr(spark, "TaskContext") and (task := spark.TaskContext.get()) is not None:
        return max(1, int(task.cpus()))
    return None
