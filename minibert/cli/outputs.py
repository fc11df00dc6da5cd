"""The formats of ``minibert encode``: vectors are written as they come, and their number when it is known."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np

from minibert.typing import Array, Num

#: safetensors' names of the dtypes that vectors have.
_DTYPES = {"float32": "F32", "float64": "F64", "int8": "I8", "uint8": "U8"}


class Output(Protocol):
    """Takes vectors, a chunk at a time.

    Attributes:
        count: How many vectors it has taken.
    """

    count: int

    def write(self, fields: Sequence[str], vectors: Num[Array, "n D"]) -> None:
        """Write some vectors; ``fields`` are the JSON objects they belong to, without the closing brace."""

    def finish(self) -> None:
        """Write what is known at the end only."""


class JsonLines:
    """A line ``{..., "embedding": [...]}`` for each text.

    Each number has the fewest digits that give the same float again; for float32 these are about half as many as a
    Python float would have.
    """

    def __init__(self, file: BinaryIO, escape: Callable[[str], str] = str) -> None:
        """Write to ``file``, each line as ``escape`` returns it."""
        self._file = file
        self._escape = escape
        self.count = 0

    def write(self, fields: Sequence[str], vectors: Num[Array, "n D"]) -> None:
        """Write some lines.

        Raises:
            ValueError: A vector has a value that JSON does not have: NaN or infinity.
        """
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"JSON has no NaN and no infinity; the vector of text {self.count + int(finite.argmin()) + 1} has. "
                "Check the model, or write npy or safetensors."
            )
        for start, vector in zip(fields, vectors, strict=True):
            line = f'{self._escape(start)},"embedding":[{",".join(map(str, vector))}]}}\n'
            self._file.write(line.encode())
        self.count += len(vectors)
        self._file.flush()  # who reads a pipe gets them now

    def finish(self) -> None:
        """Do nothing: lines do not say how many they are."""


class ArrayFile:
    """A header and the values of one array. The header has room for any number of rows; it is written again at the end.

    So the number of texts need not be known before they are encoded.
    """

    def __init__(self, file: BinaryIO, header: Callable[[int], bytes], dtype: np.dtype[np.generic]) -> None:
        """Write to ``file``, which must be at its start; ``header`` makes the header for a number of rows."""
        self._file = file
        self._header = header
        self._dtype = dtype.newbyteorder("<")
        self.count = 0
        file.write(header(0))

    def write(self, fields: Sequence[str], vectors: Num[Array, "n D"]) -> None:  # noqa: ARG002
        """Write some rows."""
        self._file.write(np.ascontiguousarray(vectors, self._dtype).data)
        self.count += len(vectors)

    def finish(self) -> None:
        """Write how many rows there are."""
        self._file.seek(0)
        self._file.write(self._header(self.count))
        self._file.flush()


def npy_file(file: BinaryIO, like: Num[Array, "0 D"]) -> ArrayFile:
    """Return a file for numpy.load, of vectors like those of an empty array."""

    def header(rows: int) -> bytes:
        content = io.BytesIO()
        # numpy leaves room in it for the first number of the shape to grow.
        facts = {"descr": like.dtype.newbyteorder("<").str, "fortran_order": False, "shape": (rows, like.shape[1])}
        np.lib.format.write_array_header_1_0(content, facts)
        return content.getvalue()

    return ArrayFile(file, header, like.dtype)


def safetensors_file(file: BinaryIO, like: Num[Array, "0 D"], metadata: Mapping[str, str]) -> ArrayFile:
    """Return a safetensors file with one array ``embeddings``, of vectors like those of an empty array.

    ``metadata`` gets another entry, ``count``: the number of rows.
    """

    def content(rows: int) -> bytes:
        entry = {
            "dtype": _DTYPES[like.dtype.name],
            "shape": [rows, like.shape[1]],
            "data_offsets": [0, rows * like.shape[1] * like.dtype.itemsize],
        }
        return json.dumps({"__metadata__": {**metadata, "count": str(rows)}, "embeddings": entry}).encode()

    # The format lets spaces follow the header. Values begin at a multiple of 8 bytes.
    length = -(-len(content(10**15)) // 8) * 8

    def header(rows: int) -> bytes:
        return length.to_bytes(8, "little") + content(rows).ljust(length)

    return ArrayFile(file, header, like.dtype)
