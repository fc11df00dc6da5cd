"""The positions of tokens in a packed array: one row for each token, without padding."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from minibert.engine.rows import RowRule
from minibert.engine.token_ids import starts_of
from minibert.typing import Array, Int, Shaped


class Group(NamedTuple):
    """Consecutive texts of equal length.

    Attributes:
        start: Index of the first text's first token.
        texts: Number of texts.
        tokens: Number of tokens of each text.
    """

    start: int
    texts: int
    tokens: int

    def of(self, x: Shaped[Array, "tokens ..."]) -> Shaped[Array, "n S ..."]:
        """Return the part of an array for these texts (a view). The array must have the tokens in order."""
        part = x[self.start : self.start + self.texts * self.tokens]
        return part.reshape(self.texts, self.tokens, *x.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """The rows of all tokens of some texts. With them, the bits of a token depend only on its own text.

    Attributes:
        tokens: Number of tokens.
        rows: Number of rows. The row rule may add a few rows to fill a tile.
        row_of: The row of each token, one text after the other; None if token i is in row i.
        token_at: The token in each row, if ``row_of`` is not None. Filling rows contain token 0.
        products: Ranges of rows. Each range is one matrix product.
        lengths: Number of tokens of each text.
        starts: The index of each text's first token. An empty text has the index of the next text.
        of_all: If the tokens are first tokens, the packing of all tokens; else None.
    """

    tokens: int
    rows: int
    row_of: Int[Array, "tokens"] | None
    token_at: Int[Array, "rows"] | None
    products: tuple[slice, ...]
    lengths: Int[Array, "texts"]
    starts: Int[Array, "texts"]
    of_all: "Packing | None" = None

    @classmethod
    def of(
        cls,
        lengths: Sequence[int] | Int[Array, "texts"],
        offsets: Sequence[int] | Int[Array, "texts"] | None,
        rule: RowRule,
    ) -> Self:
        """Return the packing of texts.

        Token j of a text goes to a row of the class of position ``offset + j`` in a tile. So the token has the same
        class in every packing. Over all texts, the classes have about the same frequencies as in a tile.

        Args:
            lengths: Number of tokens of each text.
            offsets: A number for each text. It depends only on the text, and different texts should have different
                numbers. It may be None if the rule needs no offsets.
            rule: The row rule: it says which rows have the same bits.
        """
        lengths = np.asarray(lengths, np.intp)
        starts = starts_of(lengths)
        tokens = int(lengths.sum())
        if not rule.period:
            ends = np.cumsum(lengths).tolist()
            products = tuple(itertools.starmap(slice, itertools.pairwise([0, *ends])))
            return cls(tokens, tokens, None, None, products, lengths, starts)
        if not rule.needs_offsets:
            rows = rule.rows_for(tokens)
            return cls(tokens, rows, None, None, (slice(rows),), lengths, starts)
        if offsets is None:
            raise ValueError(f"offsets must be given for a rule of period {rule.period}; they are None.")
        row_of = _rows(starts - np.asarray(offsets), lengths, np.array(rule.classes))
        rows = -(-int(row_of.max(initial=-1) + 1) // rule.period) * rule.period
        token_at = np.zeros(rows, np.intp)
        token_at[row_of] = np.arange(tokens)
        return cls(tokens, rows, row_of, token_at, (slice(rows),), lengths, starts)

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """The texts in order, in groups of consecutive equal lengths: those of all tokens."""
        if self.of_all is None:
            return _groups(self.lengths)
        groups: list[Group] = []
        start = 0
        for group in self.of_all.groups:
            groups.append(Group(start, group.texts, min(group.tokens, 1)))
            start += group.texts * groups[-1].tokens
        return tuple(groups)

    def positions(self, ids: Int[Array, "tokens"], padding_id: int | None) -> Int[Array, "tokens"]:
        """Return the row of the position table for each token, as :func:`minibert.positions.rows_of_positions`."""
        if padding_id is None:
            return np.arange(self.tokens) - self.starts.repeat(self.lengths)
        counts = ids != padding_id
        until = np.cumsum(counts)
        before = np.concatenate([[0], until])[self.starts]  # the counted tokens of earlier texts
        return (until - before.repeat(self.lengths)) * counts + padding_id

    def first_tokens(self, offsets: Sequence[int] | Int[Array, "texts"] | None, rule: RowRule) -> "Packing":
        """Return the packing of the first tokens, in the same groups of texts. Empty texts have no first token."""
        return dataclasses.replace(Packing.of(np.minimum(self.lengths, 1), offsets, rule), of_all=self)

    def rows_of_first(self, first_tokens: "Packing") -> Int[Array, "R"]:
        """Return, for each row of the packing ``first_tokens``, the row of the same token in this packing."""
        first = self.starts[self.lengths > 0]
        rows = first if self.row_of is None else self.row_of[first]
        return np.resize(rows, first_tokens.rows) if first_tokens.token_at is None else rows[first_tokens.token_at]


def _groups(lengths: Int[Array, "texts"]) -> tuple[Group, ...]:
    """Return the groups of consecutive equal lengths."""
    if len(lengths) == 0:
        return ()
    groups = []
    start = first = 0
    for end in [*(np.flatnonzero(lengths[1:] != lengths[:-1]) + 1).tolist(), len(lengths)]:
        groups.append(Group(start, end - first, int(lengths[first])))
        start += groups[-1].texts * groups[-1].tokens
        first = end
    return tuple(groups)


def _rows(
    zeros: Int[Array, "texts"], lengths: Int[Array, "texts"], classes: Int[Array, "period"]
) -> Int[Array, "tokens"]:
    """Return the row of each token: the next free row of its class.

    ``zeros`` is, for each text, the index of a token that would be at position 0 of a tile.
    """
    positions = np.arange(lengths.sum()) - zeros.repeat(lengths)
    of_token = classes[positions % len(classes)]
    rows = np.empty(len(positions), np.intp)
    for number in range(classes.max() + 1):
        places = np.flatnonzero(classes == number)
        tokens = np.flatnonzero(of_token == number)
        tile, place = np.divmod(np.arange(len(tokens)), len(places))
        rows[tokens] = tile * len(classes) + places[place]
    return rows
