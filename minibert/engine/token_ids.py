"""The token ids of many texts, in one array."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np

from minibert.typing import Array, Int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenIds:
    """The token ids of some texts, one text after the other: 4 bytes for each token.

    A GPU computes millions of tokens per second. A Python object for each token would be too slow, so all operations
    work on the whole array.

    Attributes:
        flat: The ids of all texts, as int32.
        lengths: Number of tokens of each text.
    """

    flat: Int[Array, "tokens"]
    lengths: Int[Array, "texts"]

    @classmethod
    def of(cls, texts: Iterable[Sequence[int] | Int[Array, "tokens"]]) -> Self:
        """Return the ids of texts, from one sequence for each text."""
        rows = [np.asarray(text, np.int32) for text in texts]
        lengths = np.array([len(row) for row in rows], np.intp)
        return cls(np.concatenate([np.zeros(0, np.int32), *rows]), lengths)

    @classmethod
    def joined(cls, pieces: Iterable[Self]) -> Self:
        """Return the ids of all texts of all pieces. It keeps no piece in memory."""
        flat, lengths = bytearray(), [np.zeros(0, np.intp)]
        for piece in pieces:
            flat.extend(piece.flat.data)  # np.concatenate would hold all pieces and the result at the same time
            lengths.append(piece.lengths)
        return cls(np.frombuffer(flat, np.int32), np.concatenate(lengths))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[Int[Array, "tokens"]]:
        """Yield the ids of each text (views)."""
        start = 0
        for length in self.lengths.tolist():
            yield self.flat[start : start + length]
            start += length

    @property
    def starts(self) -> Int[Array, "texts"]:
        """The index of each text's first token."""
        return starts_of(self.lengths)

    def sums(self) -> Int[Array, "texts"]:
        """Return the sum of each text's ids."""
        starts = self.starts
        if self.lengths.all():
            return np.add.reduceat(self.flat, starts, dtype=np.int64)
        totals = np.concatenate([[0], self.flat.cumsum(dtype=np.int64)])  # for an empty text, reduceat gives an id
        return totals[starts + self.lengths] - totals[starts]

    def take(self, texts: Sequence[int] | Int[Array, "n"]) -> Self:
        """Return the ids of some texts, in the order of ``texts``."""
        which = np.asarray(texts, np.intp)
        lengths = self.lengths[which]
        tokens = np.arange(lengths.sum()) + np.repeat(self.starts[which] - starts_of(lengths), lengths)
        return type(self)(self.flat[tokens], lengths)


def starts_of(lengths: Int[Array, "texts"]) -> Int[Array, "texts"]:
    """Return the index of the first token of each text in a flat array."""
    return lengths.cumsum() - lengths  # for few texts, the method takes half the time of the function
