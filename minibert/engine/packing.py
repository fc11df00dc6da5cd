"""Where each text's tokens lie in a packed array: one row a token, no padding."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from minibert.engine.rows import RowRule
from minibert.token_ids import starts_of
from minibert.typing import Array, Int, Shaped


class Group(NamedTuple):
    """Texts of equal length that follow each other.

    Attributes:
        start: Index of the first text's first token.
        texts: How many texts.
        tokens: How many tokens each of them has.
    """

    start: int
    texts: int
    tokens: int

    def of(self, x: Shaped[Array, "tokens ..."]) -> Shaped[Array, "n S ..."]:
        """Return these texts' part of an array that has the tokens in order (a view)."""
        part = x[self.start : self.start + self.texts * self.tokens]
        return part.reshape(self.texts, self.tokens, *x.shape[1:])


class Packing(NamedTuple):
    """The rows of all tokens of some texts, so that the bits of each depend on its own text alone.

    Attributes:
        tokens: How many tokens there are.
        rows: How many rows: a few more where the row rule needs them to fill a tile.
        row_of: The row of each token, text after text; None where token i is in row i.
        token_at: The token in each row, where ``row_of`` is not None; those that are to fill up hold token 0.
        groups: The texts in order.
        products: Runs of rows that go into one matrix product each.
        lengths: How many tokens each text has.
        starts: The index of each text's first token; of a text without tokens, of the next one's.
    """

    tokens: int
    rows: int
    row_of: Int[Array, "tokens"] | None
    token_at: Int[Array, "rows"] | None
    groups: tuple[Group, ...]
    products: tuple[slice, ...]
    lengths: Int[Array, "texts"]
    starts: Int[Array, "texts"]

    @classmethod
    def of(
        cls,
        lengths: Sequence[int] | Int[Array, "texts"],
        offsets: Sequence[int] | Int[Array, "texts"] | None,
        rule: RowRule,
    ) -> Self:
        """Return the packing of texts.

        Token j of a text goes to some row of the class that position ``offset + j`` of a tile has. So its class is
        the same in every packing, and in all texts together the classes are about as frequent as in a tile.

        Args:
            lengths: Tokens of each text; equal lengths that follow each other become one group.
            offsets: A number for each text that depends on nothing but the text, and is different in others; None will
                do where the rule needs none.
            rule: Which rows have the same bits.
        """
        lengths = np.asarray(lengths, np.intp)
        starts = starts_of(lengths)
        tokens = int(lengths.sum())
        groups = _groups(lengths)
        if not rule.period:
            ends = np.cumsum(lengths).tolist()
            products = tuple(itertools.starmap(slice, itertools.pairwise([0, *ends])))
            return cls(tokens, tokens, None, None, groups, products, lengths, starts)
        if not rule.needs_offsets:
            rows = rule.rows_for(tokens)
            return cls(tokens, rows, None, None, groups, (slice(rows),), lengths, starts)
        if offsets is None:
            raise ValueError(f"offsets must be given for a rule of period {rule.period}; they are None.")
        row_of = _rows(starts - np.asarray(offsets), lengths, np.array(rule.classes))
        rows = -(-int(row_of.max(initial=-1) + 1) // rule.period) * rule.period
        token_at = np.zeros(rows, np.intp)
        token_at[row_of] = np.arange(tokens)
        return cls(tokens, rows, row_of, token_at, groups, (slice(rows),), lengths, starts)

    def positions(self) -> Int[Array, "tokens"]:
        """Return the position of each token in its text."""
        return np.arange(self.tokens) - self.starts.repeat(self.lengths)

    def first_tokens(self, offsets: Sequence[int] | Int[Array, "texts"] | None, rule: RowRule) -> "Packing":
        """Return the packing of each text's first token alone, if it has one, in the same groups of texts."""
        groups: list[Group] = []
        start = 0
        for group in self.groups:
            groups.append(Group(start, group.texts, min(group.tokens, 1)))
            start += group.texts * groups[-1].tokens
        return Packing.of(np.minimum(self.lengths, 1), offsets, rule)._replace(groups=tuple(groups))

    def rows_of_first(self, first_tokens: "Packing") -> Int[Array, "R"]:
        """Return the row here of what each row of ``first_tokens`` has."""
        first = self.starts[self.lengths > 0]
        rows = first if self.row_of is None else self.row_of[first]
        return np.resize(rows, first_tokens.rows) if first_tokens.token_at is None else rows[first_tokens.token_at]


def _groups(lengths: Int[Array, "texts"]) -> tuple[Group, ...]:
    """Return the runs of equal lengths."""
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
    """Return the row of each token: the next free one of its class.

    ``zeros`` is where each text would have a token at position 0 of a tile.
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
