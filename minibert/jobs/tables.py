"""The rows of Parquet and Arrow files, batch by batch. pyarrow is imported here, when it is first needed."""

import contextlib
import importlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from minibert.errors import JobError

#: Number of bytes that are read from a Parquet file at a time, so that its row groups can be of any size.
_BUFFER = 1 << 20


def pyarrow(module: str = "pyarrow") -> Any:
    """Return a module of pyarrow. Raise JobError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise JobError(
            f"Parquet and Arrow files need pyarrow, which cannot be imported: {error}. "
            'pip install "minibert[jobs]", or use text, JSON lines or CSV as input and --format npy.'
        ) from error


@contextlib.contextmanager
def opened(path: Path, kind: str) -> Iterator[Any]:
    """Give a reader of a Parquet or Arrow file. Each error of pyarrow becomes a JobError that names the file."""
    pa = pyarrow()
    try:
        with pa.OSFile(os.fsencode(path)) as file:
            if kind == "parquet":
                options = {"buffer_size": _BUFFER, "pre_buffer": False}
                with pyarrow("pyarrow.parquet").ParquetFile(file, **options) as parquet:
                    yield parquet
                return
            try:
                reader = pa.ipc.open_file(file)
            except pa.ArrowInvalid:
                file.seek(0)
                reader = pa.ipc.open_stream(file)
            yield reader
    except (pa.ArrowException, OSError) as error:  # pyarrow has an OSError without a number for damaged pages
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).split("\n")[0].removesuffix(".")
        if isinstance(error, pa.ArrowNotImplementedError):
            message = f"{path} must have columns that pyarrow can read: {reason}. Name the columns to keep with --keep."
        else:
            message = f"{path} must be a whole file in the format {kind}; it is not: {reason}. Get it again."
        raise JobError(message) from error


def schema_of(path: Path, kind: str) -> Any:
    """Return the ``pyarrow.Schema`` of a file."""
    with opened(path, kind) as reader:
        return reader.schema_arrow if kind == "parquet" else reader.schema


def batches(path: Path, kind: str, names: list[str], start: int, most: int) -> Generator[list[Any], None, None]:
    """Yield some columns of a file from row ``start`` on: a list of arrays with at most ``most`` values each."""
    with opened(path, kind) as reader:
        if kind == "parquet":
            groups = list(range(reader.metadata.num_row_groups))
            while groups and reader.metadata.row_group(groups[0]).num_rows <= start:
                start -= reader.metadata.row_group(groups.pop(0)).num_rows
            found = reader.iter_batches(most, row_groups=groups, columns=list(dict.fromkeys(names)), use_threads=False)
        elif hasattr(reader, "get_batch"):
            found = map(reader.get_batch, range(reader.num_record_batches))
        else:
            found = reader
        for batch in found:
            for first in range(start, batch.num_rows, most):
                yield [batch.column(name).slice(first, most) for name in names]
            start = max(0, start - batch.num_rows)


def is_text(kind: Any) -> bool:
    """Return whether an Arrow type holds strings, or only nulls."""
    types = pyarrow().types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    views = getattr(types, "is_string_view", lambda _: False)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) or views(kind)


def plain(kind: Any) -> Any:
    """Return the Arrow type of a column in the output: for a dictionary, the type of its values."""
    pa = pyarrow()
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if is_text(kind) and not pa.types.is_large_string(kind) else kind


def chosen(column: Any, good: list[bool]) -> Any:
    """Return the values of an Arrow array that are good. Some types, such as views, have no filter in Arrow."""
    return pyarrow().concat_arrays([column[:0], *(column[i : i + 1] for i, each in enumerate(good) if each)])


def texts_of(column: Any) -> list[str | ValueError]:
    """Return the strings of an Arrow array. A value that cannot be encoded becomes an error with the reason."""
    pa = pyarrow()
    column = column.cast(pa.large_string())
    try:
        column.validate(full=True)
        values = column.to_pylist()
    except pa.ArrowInvalid:  # a byte that is not UTF-8
        values = [_text_of(value) for value in column]
    return [ValueError("it is null") if value is None else value for value in values]


def _text_of(value: Any) -> str | ValueError | None:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return ValueError(f"it must be UTF-8; its byte {error.start + 1} is not")
