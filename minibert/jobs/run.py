"""Jobs: vectors for files of any size. A job that was interrupted goes on, and its result has the same bytes."""

import contextlib
import copy
import importlib
import itertools
import logging
import operator
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from minibert import quantization
from minibert.encoder import SentenceEncoder
from minibert.engine import native
from minibert.engine.batches import ahead
from minibert.engine.threads import blas_name
from minibert.errors import JobError, TruncationError, TruncationWarning, VectorError, warn_caller
from minibert.inputs import at_least_one, require_choice
from minibert.jobs import tables
from minibert.jobs.folder import Folder
from minibert.jobs.inputs import Chunk, Reader, Reading, common_columns, find_files, scan
from minibert.jobs.shards import Layout, output_columns, writing
from minibert.typing import Array, Num, PathLike

logger = logging.getLogger("minibert")

#: The precisions of the output. The ranges of int8 and uint8 would come from all vectors of the job.
PRECISIONS = ("float32", "float16", "binary", "ubinary")


class Progress:
    """What a job reports while it runs. A subclass can show it; this class does nothing."""

    def checking(self, size: int) -> None:
        """The input has this number of bytes. Each byte is reported twice: when it is hashed, and when it is read."""

    def checked(self, size: int) -> None:
        """So many more bytes are done."""

    def encoding(self, rows: int, done: int) -> None:
        """This part of the job has so many rows. So many of them are in shards that are complete."""

    def encoded(self, rows: int) -> None:
        """So many more rows are done. This method is called from any thread."""

    def computed(self, tokens: int) -> None:
        """So many more tokens are done."""


def embed_files(
    encoder: SentenceEncoder | Callable[[], SentenceEncoder],
    inputs: PathLike | Iterable[PathLike],
    output: PathLike,
    *,
    input_format: str | None = None,
    column: str = "text",
    id_column: str | None = None,
    keep: Literal["all", "none"] | Iterable[str] | None = None,
    on_error: Literal["error", "skip"] = "error",
    prompt: str | None = None,
    prompt_name: str | None = None,
    kind: Literal["query", "document"] | None = None,
    normalize: bool = False,
    precision: Literal["float32", "float16", "binary", "ubinary"] = "float32",
    batch_size: int | None = None,
    output_format: Literal["parquet", "npy"] = "parquet",
    compression: Literal["none", "zstd"] = "none",
    shard_rows: int = 65536,
    part: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Write the vectors of the texts in files to a folder, in shards. Continue a job that is already in the folder.

    All rows are checked first. Then the shards that are not complete are computed. The bytes of all shards depend only
    on the input, the model, the options and the versions of minibert, tokenizers and pyarrow; without native kernels,
    also on numpy and the processor. On a GPU, vectors can differ in their last bits. Memory does not grow with the
    input.

    Args:
        encoder: The encoder, or a function that returns it. The function is called after the rows are checked. Its
            settings count, such as ``truncate_dim`` and ``on_truncate``.
        inputs: Files, folders, or patterns such as ``"data/*.jsonl"``: text, JSON lines, CSV, Parquet or Arrow. The
            first three can be compressed (``.gz``).
        output: The folder. It is created if necessary.
        input_format: A format for all files. By default, their names decide.
        column: The column of texts. A text file has the column ``"text"``.
        id_column: The column that becomes ``"id"`` in the output. By default, ``"id"`` is the number of the row in the
            whole input, from 0.
        keep: Columns of the input that the output keeps. The default is ``"all"`` for Parquet, ``"none"`` for .npy.
        on_error: What to do with a row that cannot be encoded: ``"error"``, before anything is computed, or
            ``"skip"``: it goes to a file ``.skipped.jsonl`` of its shard.
        prompt: As in :meth:`~minibert.SentenceEncoder.encode`.
        prompt_name: As in ``encode``.
        kind: ``"query"`` or ``"document"`` for the prompt of ``encode_query`` or ``encode_document``.
        normalize: Whether to scale the vectors to length 1.
        precision: ``"float32"`` for the vectors as they are, ``"float16"``, or ``"binary"`` or ``"ubinary"`` as in
            :func:`~minibert.quantize_embeddings`.
        batch_size: As in ``encode``.
        output_format: ``"parquet"``, or ``"npy"`` with ids and columns in JSON lines.
        compression: Of Parquet files.
        shard_rows: Number of input rows of a shard.
        part: ``(i, n)`` to compute only the shards of part ``i``, from 1 to ``n``. Other processes can compute the
            other parts at the same time.
        progress: What is told how far the job is.

    Returns:
        The content of ``_manifest.json``, or None if shards of other parts are not complete yet.

    Raises:
        JobError: A row cannot be encoded, the folder has another job, or it cannot be used.
        TruncationError: A text is too long, and the encoder's ``on_truncate`` is ``"error"``.
        VectorError: A vector has NaN or infinity.
        OSError: A file cannot be read or written. The job can go on later.
    """
    progress = progress or Progress()
    require_choice("output_format", output_format, ("parquet", "npy"))
    require_choice("compression", compression, ("none", "zstd"))
    require_choice("on_error", on_error, ("error", "skip"))
    _check_precision(precision)
    if not 1 <= part[0] <= part[1]:
        raise ValueError(f"part must be (i, n) with i from 1 to n; it is {part}.")
    if output_format == "parquet":
        tables.pyarrow("pyarrow.parquet")
    elif compression != "none":
        raise ValueError("compression is for Parquet; .npy files have none. Leave it out.")
    paths, input_format = find_files([inputs] if isinstance(inputs, str | os.PathLike) else inputs, input_format)
    if input_format == "text" and (column != "text" or id_column is not None):
        raise JobError('a text file has only the column "text", and no ids. Leave --column and --id-column out.')
    keep = ("all" if output_format == "parquet" else "none") if keep is None else keep
    reading = Reading(
        kind=input_format,
        column=column,
        id_column=id_column,
        keep={"all": None, "none": ()}.get(keep, (keep,)) if isinstance(keep, str) else tuple(keep),
        on_error=on_error,
        shard_rows=at_least_one("shard_rows", shard_rows),
    )

    folder = Folder(Path(output), part)
    with folder.opened(paths):
        known = folder.known()
        same = known.get("input") == reading.facts()
        progress.checking(2 * sum(path.stat().st_size for path in paths))
        sources = scan(paths, reading, known["files"] if same else [], progress.checked)
        columns = common_columns(sources, reading)

        model = encoder if isinstance(encoder, SentenceEncoder) else encoder()
        prompt = model.prompt_for(kind) if kind else model._settings.prompt(prompt, prompt_name)  # noqa: SLF001
        work = _Work(model, prompt, normalize, precision, batch_size, progress)
        like, _ = work.vectors([])
        layout = Layout(
            format=output_format,
            compression=compression,
            width=like.shape[1],
            dtype=like.dtype,
            is_binary=precision in {"binary", "ubinary"},
            columns=output_columns(columns, sources, reading, output_format),
        )
        rows = sum(source.rows for source in sources)
        plan = {
            "input": reading.facts(),
            "files": [source.facts() for source in sources],
            "rows": rows,
            "shards": max(1, -(-rows // shard_rows)),
            "model": work.facts(),
            "output": layout.facts(),
            "versions": _versions(output_format, model.kernels),
        }
        name = model.get_params()["model_name_or_path"]
        shown = {"model": "built-in" if name is None else os.fspath(name), "files": [str(path) for path in paths]}
        folder.agree(plan, shown)
        with contextlib.closing(Reader(sources, reading, columns)) as reader:
            _run(folder, _pending(folder, rows, shard_rows, progress), reader, work, layout)
        manifest = folder.finish()
        work.report()
        return manifest


def _check_precision(precision: str) -> None:
    if precision in {"int8", "uint8"}:
        raise ValueError(
            f"precision {precision} takes its ranges from all vectors of the job, which are never in one place. Use "
            "float16, binary or ubinary, or quantize the float32 vectors later with minibert.quantize_embeddings."
        )
    require_choice("precision", precision, PRECISIONS)


def _versions(output_format: str, kernels: str) -> dict[str, str]:
    """Return the versions of all software on which bytes depend."""
    # This package is loaded. Its name cannot be imported here: it is in a higher layer.
    found = {"minibert": importlib.import_module("minibert").__version__, "tokenizers": tokenizers.__version__}
    if output_format == "parquet":
        found["pyarrow"] = tables.pyarrow().__version__
    if kernels == native.NUMPY:  # native kernels have the same bits everywhere
        found |= {"numpy": np.__version__, "BLAS": blas_name()}
    return found


class _Work:
    """The computation: an encoder and the options that decide about its vectors."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        prompt: str,
        normalize: bool,
        precision: Any,
        batch_size: int | None,
        progress: Progress,
    ) -> None:
        self._encoder = copy.copy(encoder)
        self._warns = encoder.on_truncate == "warn"
        if self._warns:  # once, at the end
            self._encoder.on_truncate = "ignore"
        self._prompt = prompt
        self._normalize = normalize
        self._precision = precision
        self._batch_size = batch_size
        self._progress = progress
        self._texts = self._truncated = self._longest = self._skipped = 0

    def facts(self) -> dict[str, Any]:
        """Return what decides about the vectors."""
        encoder = self._encoder
        return {
            "fingerprint": encoder.fingerprint,
            "prompt": self._prompt,
            "max_seq_length": encoder.max_seq_length,
            "include_prompt": encoder.include_prompt,
            "dimensions": encoder.get_embedding_dimension(),
            "normalize": self._normalize,
            "precision": self._precision,
            "device": encoder.device.partition(":")[0],
            "dtype": encoder._engine.precision,  # noqa: SLF001
            "kernels": "native" if encoder.kernels in native.NAMES else encoder.kernels,
        }

    def vectors(self, texts: list[str]) -> tuple[Num[Array, "n E"], int]:
        """Return the vectors of some texts in the precision of the output, and how many texts were truncated."""
        if not texts:
            return self._converted(self._encoder.encode(texts)), 0
        (vectors,) = self._encoder.encode_stream(
            texts,
            prompt=self._prompt,
            chunk_size=len(texts),
            batch_size=self._batch_size,
            normalize_embeddings=self._normalize,
            progress=self._progress.encoded,
        )
        found = self._encoder.truncation
        self._progress.computed(found.tokens)
        self._texts += len(texts)
        self._truncated += found.count
        self._longest = max(self._longest, found.longest)
        return self._converted(vectors), found.count

    def _converted(self, vectors: Num[Array, "n D"]) -> Num[Array, "n E"]:
        if self._precision == "float32":  # as in encode, this changes nothing
            return vectors
        if self._precision != "float16":
            return quantization.quantize_embeddings(vectors, self._precision)
        with np.errstate(over="ignore"):
            half = vectors.astype(np.float16)
        lost = (np.isinf(half) & np.isfinite(vectors)).any(axis=1)
        if lost.any():
            raise VectorError(
                f"every number must fit in float16, up to 65,504; one of item {int(lost.argmax())} does not. "
                "Use float32, or normalize the vectors."
            )
        return half

    def skip(self, rows: int) -> None:
        """Count rows that are skipped."""
        self._progress.encoded(rows)
        self._skipped += rows

    def report(self) -> None:
        """Warn about skipped rows; also about truncated texts, if the encoder does."""
        if self._skipped:
            logger.warning("skipped rows: %s; the files .skipped.jsonl say why", f"{self._skipped:,}")
        if self._warns and self._truncated:
            warn_caller(
                f"{self._truncated:,} of {self._texts:,} texts were cut to max_seq_length = "
                f"{self._encoder.max_seq_length} tokens; the longest has {self._longest:,}.",
                TruncationWarning,
            )


def _pending(folder: Folder, rows: int, shard_rows: int, progress: Progress) -> dict[int, tuple[int, int]]:
    """Return the first row, and the row after the last, of each shard of this part that is not complete."""
    own = {shard: (shard * shard_rows, min(rows, (shard + 1) * shard_rows)) for shard in folder.own()}
    pending = {shard: bounds for shard, bounds in own.items() if folder.complete(shard) is None}
    total, left = (sum(stop - start for start, stop in some.values()) for some in (own, pending))
    progress.encoding(total, total - left)
    return pending


def _run(folder: Folder, pending: dict[int, tuple[int, int]], reader: Reader, work: _Work, layout: Layout) -> None:
    """Compute shards. One thread reads ahead, one writes: in memory there are only a few chunks."""
    items = ((shard, chunk) for shard, bounds in pending.items() for chunk in reader.chunks(*bounds))
    with (
        contextlib.closing(ahead(lambda _: next(items, None), itertools.repeat(None))) as coming,
        ThreadPoolExecutor(1, "minibert-write") as writer,
    ):
        last: Future[Any] = writer.submit(int)  # what the writer does; nothing yet
        for shard, chunks in itertools.groupby(iter(coming.__next__, None), operator.itemgetter(0)):
            start, stop = pending[shard]
            with contextlib.ExitStack() as files:
                write = files.enter_context(writing(folder, shard, layout, {"first_row": start, "last_row": stop - 1}))
                try:
                    for _, chunk in chunks:
                        work.skip(len(chunk.skipped))
                        done = _vectors(work, chunk, reader)
                        last.result()
                        last = writer.submit(write, chunk, *done)
                finally:  # also before the files of a failed shard are removed
                    wait([last])
                last.result()
                # To sync and to hash a shard takes as long as to compute some chunks of the next one.
                last = writer.submit(files.pop_all().close)
        last.result()


def _vectors(work: _Work, chunk: Chunk, reader: Reader) -> tuple[Array, int]:
    """Return :meth:`_Work.vectors` of a chunk. Errors name the file and the row in it."""
    try:
        return work.vectors(chunk.texts)
    except (TruncationError, VectorError) as error:
        message = re.sub(r"item (\d+)", lambda found: reader.place(chunk.rows[int(found[1])]), str(error), count=1)
        raise type(error)(message) from error
