"""The input of a job: files, and their rows in chunks. All rows are checked before the first one is encoded."""

import bisect
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from minibert.errors import JobError
from minibert.jobs import tables
from minibert.jobs.lines import common_kind, kind_of, opened, read_rows, shortened, stored
from minibert.typing import PathLike

#: The formats by the suffix of a file's name.
KINDS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
#: The Arrow types of the kinds of JSON values. The last three become strings: a string, JSON text, only nulls.
TYPES = {"bool": "bool", "int": "int64", "long": "int64", "double": "double", "string": "string", "json": "string"}
TYPES["null"] = "string"
#: The column of vectors, and that of ids, in the output.
EMBEDDING, ID = "embedding", "id"
#: Number of rows that are encoded together, unless their texts have more characters than the second number. The end of
#: a chunk depends on the rows alone, because a chunk is a row group of a Parquet file.
CHUNK_ROWS, CHUNK_CHARACTERS = 4096, 1 << 24
#: Number of rows that are read at a time. Texts of any length are in memory before a chunk ends.
_AT_ONCE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How the input is read.

    Attributes:
        kind: The format of all files: a value of :data:`KINDS`.
        column: The column of texts.
        id_column: The column of ids, or None for the number of the row in the input, from 0.
        keep: The columns to keep, or None for all.
        on_error: ``"error"`` or ``"skip"``: what to do with a row that cannot be encoded.
        shard_rows: Number of input rows of a shard.
    """

    kind: str
    column: str
    id_column: str | None
    keep: tuple[str, ...] | None
    on_error: str
    shard_rows: int

    @property
    def is_lines(self) -> bool:
        """Whether the files are lines: text, JSON lines or CSV."""
        return self.kind not in {"parquet", "arrow"}

    def facts(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {**vars(self), "keep": "all" if self.keep is None else list(self.keep)}

    def names(self, available: Iterable[str]) -> list[str]:
        """Return the columns of the output, in order: that of ids, if there is one, and those to keep."""
        kept = [name for name in available if name != EMBEDDING] if self.keep is None else self.keep
        return list(dict.fromkeys(kept if self.id_column is None else [self.id_column, *kept]))


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of the input.

    Attributes:
        path: The file.
        changed: The time of its last change, in ns, when the hash was computed.
        size: Its size in bytes.
        sha256: The hash of its content.
        rows: Number of its rows.
        starts: For lines, the byte offset of each row that begins a shard.
        columns: The kinds of its columns by name; for Parquet and Arrow, the names of their Arrow types.
    """

    path: Path
    changed: int
    size: int
    sha256: str
    rows: int
    starts: list[int]
    columns: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """Return what depends only on the content."""
        return {name: value for name, value in vars(self).items() if name not in {"path", "changed"}}

    def require_unchanged(self) -> None:
        """Raise JobError if the file has changed since its hash was computed: its rows are not those of the plan."""
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            raise JobError(f"{self.path} must not change while a job reads it; it did. Restore it and start again.")


def find_files(inputs: Iterable[PathLike], kind: str | None) -> tuple[list[Path], str]:
    """Return the files that names, folders and patterns stand for, and their format.

    The files of a folder and of a pattern are sorted by name. Names that begin with ``.`` or ``_`` in a folder are left
    out.

    Raises:
        JobError: There is no such file, a file is not regular, or the files have several formats.
    """
    found: list[Path] = []
    for name in map(Path, inputs):
        files = [name] if name.exists() else [Path(each) for each in sorted(glob.glob(str(name), recursive=True))]  # noqa: PTH207
        if name.is_dir():
            files = sorted(path for path in name.iterdir() if path.is_file() and path.name[0] not in "._")
        files = [path for path in files if not path.is_dir()]
        if not files:
            raise JobError(
                f"{name} must be a file, a folder with files, or a pattern such as 'data/*.jsonl'; it is none."
            )
        found += files
    if pipe := next((path for path in found if not path.is_file()), None):
        raise JobError(f"{pipe} must be a regular file, which is read twice; it is not. Write its content to a file.")
    kinds = {kind or KINDS.get(Path(path.name.removesuffix(".gz")).suffix): path for path in reversed(found)}
    if None in kinds:
        raise JobError(f"{kinds[None]} must end in {', '.join(KINDS)}, or give --input-format; it does not.")
    if len(kinds) != 1:
        named = ", ".join(f"{path} is {kind}" for kind, path in sorted(kinds.items(), key=str)) or "there is no file"
        raise JobError(f"the files of a job must have one format; {named}. Name the files of one format.")
    return found, str(next(iter(kinds)))


def scan(
    paths: Sequence[Path], reading: Reading, known: Sequence[Mapping[str, Any]], checked: Callable[[int], object]
) -> list[Source]:
    """Hash the files, count their rows and check all of them.

    Args:
        paths: The files.
        reading: How they are read.
        known: :meth:`Source.facts` of an earlier scan with the same ``reading``. A file with the same content, at the
            same place, is not checked again.
        checked: A function that is called with the size of a file when its content is hashed, and again when its rows
            are checked.

    Raises:
        JobError: A file cannot be read, or a row cannot be encoded and ``reading.on_error`` is ``"error"``.
    """
    sources, first = list[Source](), 0
    for path, old in itertools.zip_longest(paths, known[: len(paths)]):
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        checked(status.st_size)
        if old is not None and (old["size"], old["sha256"]) == (status.st_size, digest):
            source = Source(path, status.st_mtime_ns, **old)
        else:
            rows, starts, columns = (_scan_lines if reading.is_lines else _scan_table)(path, reading, first)
            source = Source(path, status.st_mtime_ns, status.st_size, digest, rows, starts, columns)
        source.require_unchanged()
        checked(status.st_size)
        sources.append(source)
        first += source.rows
    return sources


def common_columns(sources: Sequence[Source], reading: Reading) -> dict[str, str]:
    """Return the kinds of the columns of the output, by name: one schema for all files.

    Raises:
        JobError: A column is missing, or its Arrow types differ.
    """
    merged: dict[str, str] = {}
    for source in sources:
        if reading.kind != "jsonl" and sources[0].columns.items() ^ source.columns.items():
            differs = sorted(name for name, _ in sources[0].columns.items() ^ source.columns.items())
            raise JobError(
                f"all files must have the same columns; {source.path} and {sources[0].path} differ in "
                f"{', '.join(dict.fromkeys(differs))}. Name the columns that you need with --keep."
            )
        for name, kind in source.columns.items():
            merged[name] = common_kind({merged.get(name, kind), kind}) if reading.is_lines else kind
    names = reading.names(merged)
    missing = [name for name in names if name not in merged]
    if missing and any(source.rows for source in sources):
        raise JobError(f"there is no column {missing[0]!r}; the columns are {', '.join(merged) or 'none'}.")
    for name in sorted({ID, EMBEDDING} & (set(names) - {reading.id_column})):
        raise JobError(
            f"the output has its own column {name!r}, so no other column may have this name. Give "
            f"{'--id-column id to use it, or ' if name == ID else ''}--keep with the columns that you need."
        )
    return {name: merged.get(name, "null") for name in names}


def _scan_lines(path: Path, reading: Reading, first: int) -> tuple[int, list[int], dict[str, str]]:
    kinds: dict[str, set[str]] = {"text": {"string"}} if reading.kind == "text" else {}
    rows, starts, names = 0, [], list[str]()
    wanted = None if reading.keep is None else {reading.id_column, *reading.keep}
    with opened(path) as file:
        for row in read_rows(path, file, reading.kind, 0, names):
            if (first + rows) % reading.shard_rows == 0:
                starts.append(row.offset)
            if rows == 0 and reading.kind == "csv":
                _require_columns(path, names, reading)
            rows += 1
            text = _text_of(row.fields, row.reason, reading)
            if isinstance(text, ValueError):
                if reading.on_error == "error":
                    raise _unusable(path, rows, reading, text)
            elif reading.kind == "jsonl" and row.fields:
                for name, value in row.fields.items():
                    if name in kinds:
                        kinds[name].add(kind_of(value))
                    elif wanted is None or name in wanted:
                        kinds[name] = {kind_of(value)}
    columns = {name: common_kind(found) for name, found in kinds.items()}
    columns |= {name: "string" for name in names if wanted is None or name in wanted}
    return rows, starts, columns


def _scan_table(path: Path, reading: Reading, _first: int) -> tuple[int, list[int], dict[str, str]]:
    schema = tables.schema_of(path, reading.kind)
    _require_columns(path, schema.names, reading)
    if not tables.is_text(schema.field(reading.column).type):
        kind = schema.field(reading.column).type
        raise JobError(
            f"{path}: the column {reading.column!r} must hold strings; it holds {kind}. Give another --column."
        )
    rows = 0
    for (column,) in tables.batches(path, reading.kind, [reading.column], 0, _AT_ONCE):
        for number, text in enumerate(tables.texts_of(column), rows + 1):
            if isinstance(text, ValueError) and reading.on_error == "error":
                raise _unusable(path, number, reading, text)
        rows += len(column)
    return rows, [], {name: str(schema.field(name).type) for name in reading.names(schema.names)}


def _require_columns(path: Path, names: Sequence[str], reading: Reading) -> None:
    for name in [reading.column, *reading.names(names)]:
        if names.count(name) != 1:
            what = "several columns" if name in names else "no column"
            raise JobError(f"{path} has {what} {name!r}; its columns are {', '.join(names)}. Give another name.")


def _text_of(fields: Mapping[str, Any] | None, reason: str, reading: Reading) -> str | ValueError:
    """Return the text of a row, or an error with the reason why there is none."""
    if fields is None:
        return ValueError(reason)
    if reading.column not in fields:
        names = ", ".join(map(shortened, fields)) or "none"
        return ValueError(f"it must have a field {shortened(reading.column)} (see --column); its fields are {names}")
    text = fields[reading.column]
    if not isinstance(text, str):
        return ValueError(f"its field {shortened(reading.column)} must be a string; it is {shortened(text)}")
    return text


def _unusable(path: Path, number: int, reading: Reading, reason: ValueError) -> JobError:
    return JobError(
        f"{path}: {place(reading, number)} cannot be encoded: {reason}. Correct it, or skip such rows with "
        "--on-error skip."
    )


def place(reading: Reading, number: int) -> str:
    """Return the name of a row of a file for messages; the first row has the number 1."""
    return f"{'line' if reading.kind in {'text', 'jsonl'} else 'row'} {number}"


@dataclasses.dataclass
class Chunk:
    """Some rows of the input.

    Attributes:
        rows: The number of each row in the input.
        texts: Their texts.
        columns: The columns of the output but for the vectors, the ids first. Each is a list of parts, which are lists
            or Arrow arrays.
        skipped: What is known of the rows between them that cannot be encoded.
    """

    rows: list[int]
    texts: list[str]
    columns: list[list[Any]]
    skipped: list[dict[str, Any]]

    def take(self, other: "Chunk", count: int) -> None:
        """Move the first ``count`` rows of ``other`` to the end of this chunk."""
        self.rows += other.rows[:count]
        self.texts += other.texts[:count]
        for own, (values,) in zip(self.columns, other.columns, strict=True):
            own.append(values[:count])
        other.rows, other.texts = other.rows[count:], other.texts[count:]
        other.columns = [[values[count:]] for (values,) in other.columns]


class Reader:
    """Reads the rows of a job's input. A file that changed after the scan is an error."""

    def __init__(self, sources: Sequence[Source], reading: Reading, columns: Mapping[str, str]) -> None:
        self._sources = sources
        self._reading = reading
        self._columns = columns
        self._ends = list(itertools.accumulate(source.rows for source in sources))
        self._stack = contextlib.ExitStack()
        self._index = -1  # the number of the open file
        self._file, self._names = cast("BinaryIO", None), list[str]()  # of lines: the file, and the header of CSV
        self._batches: Iterator[list[Any]] = iter(())  # of a table, with the next row, and arrays from there on
        self._row, self._rest = 0, list[Any]()

    def close(self) -> None:
        """Close the file that is open."""
        self._stack.close()

    def place(self, row: int) -> str:
        """Return the file and the row or line in it, for messages."""
        index = bisect.bisect_right(self._ends, row)
        number = row - self._first(index) + 1
        return f"{self._sources[index].path}: {place(self._reading, number)}"

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Yield the rows of the input from ``start`` to ``stop``, a chunk at a time. There is at least one chunk."""
        chunk, characters = self._empty(), 0
        for piece in self._pieces(start, stop):
            chunk.skipped += piece.skipped
            while piece.texts:
                up_to = np.cumsum([len(text) for text in piece.texts])
                within = int(np.searchsorted(up_to, CHUNK_CHARACTERS - characters)) + 1
                count = min(within, CHUNK_ROWS - len(chunk.texts), len(up_to))
                characters += int(up_to[count - 1])
                chunk.take(piece, count)
                if len(chunk.texts) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
                    yield chunk
                    chunk, characters = self._empty(), 0
        yield chunk

    def _first(self, index: int) -> int:
        return self._ends[index] - self._sources[index].rows

    def _empty(self) -> Chunk:
        return Chunk([], [], [[] for _ in range(len(self._columns) + (self._reading.id_column is None))], [])

    def _pieces(self, start: int, stop: int) -> Iterator[Chunk]:
        """Yield chunks of at most _AT_ONCE rows. Each of their columns has one part.

        Raises:
            JobError: A file is not as it was when it was checked.
        """
        read = self._pieces_of_lines if self._reading.is_lines else self._pieces_of_table
        while start < stop:
            index = bisect.bisect_right(self._ends, start)
            source = self._sources[index]
            source.require_unchanged()
            end = min(stop, self._ends[index])
            for piece in read(index, start, end):
                start += len(piece.rows) + len(piece.skipped)
                if self._reading.id_column is None:
                    piece.columns.insert(0, [piece.rows])
                yield piece
            source.require_unchanged()
            if start < end:
                raise JobError(f"{source.path} must have {source.rows:,} rows, as when it was checked; it has fewer.")

    def _pieces_of_lines(self, index: int, start: int, end: int) -> Iterator[Chunk]:
        source, first, offset = self._sources[index], self._first(index), 0
        if start > first:
            offset = source.starts[start // self._reading.shard_rows - -(-first // self._reading.shard_rows)]
        if self._index != index:  # stay in an open file: a file of gzip is read from its start
            self._stack.close()
            self._file = self._stack.enter_context(opened(source.path))
            next(read_rows(source.path, self._file, self._reading.kind, 0, self._names), None)
            self._index = index
        found = read_rows(source.path, self._file, self._reading.kind, offset, self._names)
        for number in range(start, end, _AT_ONCE):
            piece, kept = self._empty(), list[Mapping[str, Any]]()
            for row, (_, fields, reason) in enumerate(itertools.islice(found, min(_AT_ONCE, end - number)), number):
                text = _text_of(fields, reason, self._reading)
                if self._keeps(piece, text, row, (fields or {}).get(self._reading.id_column or "")):
                    kept.append(fields or {})
            columns = ([each.get(name) for each in kept] for name in self._columns)
            piece.columns = [
                [stored(values) if kind == "json" else values]
                for values, kind in zip(columns, self._columns.values(), strict=True)
            ]
            yield piece

    def _pieces_of_table(self, index: int, start: int, end: int) -> Iterator[Chunk]:
        if self._index != index or self._row > start:  # else go on: the next shard is often in the same row group
            self._stack.close()
            path, names = self._sources[index].path, [self._reading.column, *self._columns]
            batches = tables.batches(path, self._reading.kind, names, start - self._first(index), _AT_ONCE)
            self._batches = self._stack.enter_context(contextlib.closing(batches))
            self._index, self._row, self._rest = index, start, []
        for first in range(self._row, start, _AT_ONCE):
            self._take(min(_AT_ONCE, start - first))
        for first in range(start, end, _AT_ONCE):
            texts, *columns = self._take(min(_AT_ONCE, end - first))
            yield self._piece_of_table(texts, columns, first)

    def _take(self, count: int) -> list[Any]:
        """Return arrays of the next ``count`` rows of the open table; of fewer at the end of the file.

        The number does not depend on row groups and earlier rows: parts of other lengths give other pages in Parquet.
        """
        while not self._rest or len(self._rest[0]) < count:
            more = next(self._batches, None)
            if more is None:
                break
            pairs = zip(self._rest, more, strict=True)
            self._rest = [tables.pyarrow().concat_arrays(pair) for pair in pairs] if self._rest else more
        taken, self._rest = [array[:count] for array in self._rest], [array[count:] for array in self._rest]
        self._row += count
        return taken

    def _piece_of_table(self, texts: Any, columns: list[Any], first: int) -> Chunk:
        piece, ids = self._empty(), columns[0] if self._reading.id_column else None
        good = [
            self._keeps(piece, text, row, None if ids is None else ids[row - first])
            for row, text in enumerate(tables.texts_of(texts), first)
        ]
        piece.columns = [[column if all(good) else tables.chosen(column, good)] for column in columns]
        return piece

    def _keeps(self, piece: Chunk, text: str | ValueError, row: int, id_: Any) -> bool:
        """Add a row to ``piece``, which is skipped if there is an error in the place of its text."""
        if isinstance(text, str):
            piece.rows.append(row)
            piece.texts.append(text)
            return True
        index = bisect.bisect_right(self._ends, row)
        id_ = id_.as_py() if hasattr(id_, "as_py") else id_
        known: dict[str, Any] = {"row": row, "file": index, "row_in_file": row - self._first(index) + 1}
        known["id"] = id_ if isinstance(id_, str | int | float | None) else str(id_)
        piece.skipped.append({**known, "reason": str(text)})
        return False
