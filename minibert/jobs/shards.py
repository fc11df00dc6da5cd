"""The files of a shard: its vectors, ids and columns as Parquet or .npy, and the rows that were skipped."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np

from minibert.errors import JobError
from minibert.jobs import tables
from minibert.jobs.folder import Folder, whole
from minibert.jobs.inputs import EMBEDDING, ID, TYPES, Chunk, Reading, Source
from minibert.typing import Array, Num

#: What writes some rows of a shard: their texts and columns, their vectors, and the number of truncated texts.
Write: TypeAlias = Callable[[Chunk, Num[Array, "n D"], int], None]
#: The Arrow types that JSON has, too.
_IN_JSON = {
    "bool",
    "double",
    "float",
    "string",
    "large_string",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What the files of all shards have in common.

    Attributes:
        format: ``"parquet"`` or ``"npy"``.
        compression: ``"none"`` or ``"zstd"``, for Parquet.
        width: Number of columns of the array of vectors.
        dtype: Its dtype.
        is_binary: Whether its values are bits, eight in a byte.
        columns: The Arrow types of the other columns by name, the ids first; for .npy, their names alone.
    """

    format: str
    compression: str
    width: int
    dtype: np.dtype[Any]
    is_binary: bool
    columns: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return the attributes as JSON values, without those that follow from the model."""
        columns = {name: str(kind) for name, kind in self.columns.items()}
        return {"format": self.format, "compression": self.compression, "columns": columns}

    @functools.cached_property
    def schema(self) -> Any:
        """The ``pyarrow.Schema`` of Parquet files."""
        pa = tables.pyarrow()
        vector = pa.binary(self.width) if self.is_binary else pa.list_(pa.from_numpy_dtype(self.dtype), self.width)
        return pa.schema([*self.columns.items(), (EMBEDDING, vector)])


def output_columns(
    columns: Mapping[str, str], sources: list[Source], reading: Reading, layout_format: str
) -> dict[str, Any]:
    """Return :attr:`Layout.columns` for columns of the input of these kinds.

    Raises:
        JobError: A column has a type that Parquet does not have; or JSON lines, which go with .npy files.
    """
    found: dict[str, Any] = {ID: "int64"} if reading.id_column is None else {}
    schema = None if reading.is_lines else tables.schema_of(sources[0].path, reading.kind)
    for name, kind in columns.items():
        stored = TYPES[kind] if schema is None else tables.plain(schema.field(name).type)
        found[ID if name == reading.id_column else name] = stored
        if layout_format == "npy" and str(stored) not in _IN_JSON:
            raise JobError(
                f"columns beside .npy must be numbers or strings; {name!r} is {kind}. Use Parquet, or --keep."
            )
    if layout_format == "npy":
        return found
    pa = tables.pyarrow()
    found = {name: pa.type_for_alias(kind) if isinstance(kind, str) else kind for name, kind in found.items()}
    try:
        tables.pyarrow("pyarrow.parquet").ParquetWriter(io.BytesIO(), pa.schema(found.items())).close()
    except pa.ArrowNotImplementedError as error:
        raise JobError(f"columns must have types that Parquet has; {error}. Name others with --keep.") from error
    return found


@contextlib.contextmanager
def writing(folder: Folder, shard: int, layout: Layout, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Give a function that writes rows to a shard. Its files appear if the block ends without an exception.

    Args:
        folder: The folder.
        shard: The number of the shard.
        layout: The format.
        facts: The first entries of the sidecar.
    """
    digest, files = hashlib.sha256(), dict[str, BinaryIO]()
    counts = {"rows": 0, "skipped": 0, "truncated": 0}
    with contextlib.ExitStack() as stack:

        def file(suffix: str) -> BinaryIO:
            return named(folder.name(shard) + suffix)

        def named(name: str) -> BinaryIO:
            if name not in files:
                files[name] = stack.enter_context(whole(folder.path / name))
            return files[name]

        output: _Parquet | _Npy = _Parquet(file, layout) if layout.format == "parquet" else _Npy(file, layout)
        stack.enter_context(output)

        def write(chunk: Chunk, vectors: Num[Array, "n D"], truncated: int) -> None:
            vectors = np.ascontiguousarray(vectors, layout.dtype)
            digest.update(vectors.data)
            if chunk.rows:
                output.write(chunk, vectors)
            for row in chunk.skipped:
                named(folder.skipped(shard)).write(f"{json.dumps(row)}\n".encode())
            for name, more in (("rows", len(chunk.rows)), ("skipped", len(chunk.skipped)), ("truncated", truncated)):
                counts[name] += more

        yield write
    folder.add(shard, files, {**facts, **counts, "vectors_sha256": digest.hexdigest()})


class _Parquet:
    """A Parquet file. Each call of ``write`` makes a row group."""

    def __init__(self, file: Callable[[str], BinaryIO], layout: Layout) -> None:
        self._layout = layout
        others = list(layout.columns)
        split = {f"{EMBEDDING}.list.element": "BYTE_STREAM_SPLIT"}
        # Fixed options, so that the same rows give the same bytes. A vector's numbers hardly repeat.
        self._writer = tables.pyarrow("pyarrow.parquet").ParquetWriter(
            file(".parquet"),
            layout.schema,
            compression=layout.compression,
            use_dictionary=others,
            write_statistics=others,
            column_encoding=split if layout.compression != "none" and not layout.is_binary else None,
            memory_pool=tables.pyarrow().system_memory_pool(),
        )

    def __enter__(self) -> Self:
        return self

    def write(self, chunk: Chunk, vectors: Num[Array, "n D"]) -> None:
        """Write some rows."""
        pa, layout = tables.pyarrow(), self._layout
        pool = pa.system_memory_pool()  # that of pyarrow keeps what is freed, so its size goes up and down
        columns = [
            pa.chunked_array(
                [
                    pa.array(part, kind, memory_pool=pool) if isinstance(part, list) else part.cast(kind)
                    for part in each
                ],
                kind,
            )
            for each, kind in zip(chunk.columns, layout.columns.values(), strict=True)
        ]
        if layout.is_binary:
            array = pa.Array.from_buffers(pa.binary(layout.width), len(vectors), [None, pa.py_buffer(vectors)])
        else:
            array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), layout.width)
        self._writer.write_table(pa.table([*columns, array], schema=layout.schema))

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if kind is None:
            self._writer.close()
            # What texts and columns leave behind in the allocators would grow slowly from shard to shard.
            for pool in (tables.pyarrow().default_memory_pool(), tables.pyarrow().system_memory_pool()):
                pool.release_unused()
        else:
            with contextlib.suppress(Exception):  # the disk can still be full
                self._writer.close()


class _Npy:
    """An array for numpy.load, and beside it a file of JSON lines with the id and the columns of each vector."""

    def __init__(self, file: Callable[[str], BinaryIO], layout: Layout) -> None:
        self._layout = layout
        self._file, self._lines = file(".npy"), file(".jsonl")
        self._count = 0
        self._file.write(self._header())

    def _header(self) -> bytes:
        """Return the header. numpy leaves space in it for any number of rows."""
        content, layout = io.BytesIO(), self._layout
        facts = {"descr": layout.dtype.str, "fortran_order": False, "shape": (self._count, layout.width)}
        np.lib.format.write_array_header_1_0(content, facts)
        return content.getvalue()

    def __enter__(self) -> Self:
        return self

    def write(self, chunk: Chunk, vectors: Num[Array, "n D"]) -> None:
        """Write some rows."""
        self._file.write(vectors.data)
        self._count += len(vectors)
        names = list(self._layout.columns)
        columns = [[value for part in each for value in _values(part)] for each in chunk.columns]
        for row in zip(*columns, strict=True):
            line = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)
            self._lines.write(f"{line}\n".encode())

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if kind is None:
            self._file.seek(0)
            self._file.write(self._header())


def _values(part: Any) -> list[Any]:
    """Return the values of a part of a column, with null for NaN and infinity, which JSON does not have."""
    values = part if isinstance(part, list) else part.to_pylist()
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]
