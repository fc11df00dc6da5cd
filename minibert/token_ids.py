"""The token ids of many texts, in one array."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np

from minibert.typing import Array, Int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenIds:
    """The token ids of some texts, text after text: 4 bytes a token.

    A GPU computes millions of tokens a second. So no token may cost the work of a Python object: what is done with ids
    is done on the whole array.

    Attributes:
        flat: The ids of all texts, as int32.
        lengths: How many tokens each text has.
    """

    flat: Int[Array, "tokens"]
    lengths: Int[Array, "texts"]

    @classmethod
    def of(cls, texts: Iterable[Sequence[int] | Int[Array, "tokens"]]) -> Self:
        """Return the ids of texts that are given one by one."""
        rows = [np.asarray(text, np.int32) for text in texts]
        lengths = np.array([len(row) for row in rows], np.intp)
        return cls(np.concatenate([np.zeros(0, np.int32), *rows]), lengths)

    @classmethod
    def joined(cls, pieces: Iterable[Self]) -> Self:
        """Return the ids of all texts of all pieces; no piece is kept."""
        flat, lengths = bytearray(), [np.zeros(0, np.intp)]
        for piece in pieces:
            flat.extend(piece.flat.data)  # np.concatenate would need all pieces, and the result, at the same time
            lengths.append(piece.lengths)
        return cls(np.frombuffer(flat, np.int32), np.concatenate(lengths))

    def __len__(self) -> int:
        """Return how many texts there are."""
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
        totals = np.concatenate([[0], self.flat.cumsum(dtype=np.int64)])  # of an empty text, reduceat gives an id
        return totals[starts + self.lengths] - totals[starts]

    def take(self, texts: Sequence[int] | Int[Array, "n"]) -> Self:
        """Return the ids of some texts, in the order that is asked for."""
        which = np.asarray(texts, np.intp)
        lengths = self.lengths[which]
        tokens = np.arange(lengths.sum()) + np.repeat(self.starts[which] - starts_of(lengths), lengths)
        return type(self)(self.flat[tokens], lengths)


def starts_of(lengths: Int[Array, "texts"]) -> Int[Array, "texts"]:
    """Return where each text starts, of texts that lie one after the other."""
    return lengths.cumsum() - lengths  # the method takes half as long as the function, where there are few texts
