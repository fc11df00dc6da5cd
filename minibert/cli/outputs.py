"""The output formats of ``minibert encode``. Vectors are written chunk by chunk, and their number at the end."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np

from minibert.typing import Array, Num

#: safetensors' names of the dtypes of vectors.
_DTYPES = {"float32": "F32", "float64": "F64", "int8": "I8", "uint8": "U8"}


class Output(Protocol):
    """Writes vectors, chunk by chunk.

    Attributes:
        count: Number of vectors written.
    """

    count: int

    def write(self, fields: Sequence[str], vectors: Num[Array, "n D"]) -> None:
        """Write some vectors. ``fields`` are their JSON objects without the closing brace."""

    def finish(self) -> None:
        """Write the information that is known only at the end."""


class JsonLines:
    """A line ``{..., "embedding": [...]}`` for each text.

    Each number has the fewest digits that identify the float. For float32, these are about half the digits of a Python
    float.
    """

    def __init__(self, file: BinaryIO, escape: Callable[[str], str] = str) -> None:
        """Write to ``file``. ``escape`` is applied to each line."""
        self._file = file
        self._escape = escape
        self.count = 0

    def write(self, fields: Sequence[str], vectors: Num[Array, "n D"]) -> None:
        """Write some lines.

        Raises:
            ValueError: A vector has NaN or infinity. JSON does not have these values.
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
        self._file.flush()  # the reader of a pipe gets them now

    def finish(self) -> None:
        """Do nothing: JSON lines do not hold their number."""


class ArrayFile:
    """A header and the values of one array. The header has space for any number of rows. It is rewritten at the end.

    So the number of texts can be unknown before encoding.
    """

    def __init__(self, file: BinaryIO, header: Callable[[int], bytes], dtype: np.dtype[np.generic]) -> None:
        """Write to ``file``. Its position must be 0. ``header`` returns the header for a number of rows."""
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
        """Write the number of rows."""
        self._file.seek(0)
        self._file.write(self._header(self.count))
        self._file.flush()


def npy_file(file: BinaryIO, like: Num[Array, "0 D"]) -> ArrayFile:
    """Return a file for numpy.load, for vectors with the dtype and width of an empty array."""

    def header(rows: int) -> bytes:
        content = io.BytesIO()
        # numpy leaves space in the header for a larger first number of the shape.
        facts = {"descr": like.dtype.newbyteorder("<").str, "fortran_order": False, "shape": (rows, like.shape[1])}
        np.lib.format.write_array_header_1_0(content, facts)
        return content.getvalue()

    return ArrayFile(file, header, like.dtype)


def safetensors_file(file: BinaryIO, like: Num[Array, "0 D"], metadata: Mapping[str, str]) -> ArrayFile:
    """Return a safetensors file with one array ``embeddings``, for vectors with the dtype and width of an empty array.

    ``metadata`` gets another entry, ``count``: the number of rows.
    """

    def content(rows: int) -> bytes:
        entry = {
            "dtype": _DTYPES[like.dtype.name],
            "shape": [rows, like.shape[1]],
            "data_offsets": [0, rows * like.shape[1] * like.dtype.itemsize],
        }
        return json.dumps({"__metadata__": {**metadata, "count": str(rows)}, "embeddings": entry}).encode()

    # The format allows spaces after the header. Values begin at a multiple of 8 bytes.
    length = -(-len(content(10**15)) // 8) * 8

    def header(rows: int) -> bytes:
        return length.to_bytes(8, "little") + content(rows).ljust(length)

    return ArrayFile(file, header, like.dtype)
