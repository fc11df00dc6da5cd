"""Packing: each token has a row, of a class that its own text decides, and few rows are wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import EACH_RULE, RULES

from minibert.engine.packing import Group, Packing

#: Length and offset of each text; without special tokens, a text may have no token at all.
TEXTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**7)), min_size=1, max_size=30)

#: Each of these tests runs once for each rule.
FEW = settings(deadline=None, max_examples=30)
PERIODIC = pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=name) for name, rule in RULES.items() if rule.classes]
)


def pack(texts, rule):
    """Return the packing of pairs of length and offset."""
    return Packing.of([length for length, _ in texts], [offset for _, offset in texts], rule)


def rows_of(packing):
    """Return the row of each token, whatever the packing leaves out."""
    return np.arange(packing.tokens) if packing.row_of is None else packing.row_of


def first_of(packing):
    """Return the index of each text's first token, if it has one."""
    groups = [group for group in packing.groups if group.tokens]
    return [group.start + i * group.tokens for group in groups for i in range(group.texts)]


# ---------------------------------------------------------------- rows


@EACH_RULE
@FEW
@given(texts=TEXTS)
def test_each_token_has_a_row_of_its_own(rule, texts):
    """There are as many tokens as the texts have together, each in another row, and no row is beyond the last."""
    packing = pack(texts, rule)
    rows = rows_of(packing)

    assert packing.tokens == len(rows) == sum(length for length, _ in texts)
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(packing.rows))


@EACH_RULE
@FEW
@given(texts=TEXTS)
def test_token_at_inverts_row_of(rule, texts):
    """``token_at`` has the token of each row; a row that is to fill up has token 0."""
    packing = pack(texts, rule)
    if packing.row_of is None:
        assert packing.token_at is None
        return
    token_at = np.zeros(packing.rows, int)
    token_at[packing.row_of] = np.arange(packing.tokens)

    np.testing.assert_array_equal(packing.token_at, token_at)


@PERIODIC
@FEW
@given(texts=TEXTS)
def test_class_of_a_token_depends_on_its_text_alone(rule, texts):
    """Token j of a text lies in a row of the class at ``offset + j``, wherever its text comes among the others."""
    classes = [rule.classes[row % rule.period] for row in rows_of(pack(texts, rule))]
    expected = [rule.classes[(offset + j) % rule.period] for length, offset in texts for j in range(length)]

    assert classes == expected


@PERIODIC
@FEW
@given(texts=TEXTS)
def test_tiles_are_whole(rule, texts):
    """The number of rows is a multiple of the period, and never 1: a product with one row takes other code."""
    packing = pack(texts, rule)

    assert packing.rows % rule.period == 0
    assert packing.rows != 1


@PERIODIC
@FEW
@given(texts=TEXTS)
def test_one_product_for_all(rule, texts):
    """All rows go into one matrix product."""
    packing = pack(texts, rule)

    assert [range(packing.rows)[rows] for rows in packing.products] == [range(packing.rows)]


@FEW
@given(texts=TEXTS)
def test_a_product_for_each_text(texts):
    """Where no rule was found, each text's rows are together, in order, and go into a product of their own."""
    packing = pack(texts, RULES["one product a text"])
    lengths = [length for length, _ in texts]
    starts = np.cumsum([0, *lengths[:-1]]).tolist()

    assert packing.row_of is None
    assert [range(packing.rows)[rows] for rows in packing.products] == [
        range(start, start + length) for start, length in zip(starts, lengths, strict=True)
    ]


# ---------------------------------------------------------------- how many rows


@PERIODIC
@FEW
@given(texts=TEXTS)
def test_never_more_rows_than_whole_tiles_for_each_text(rule, texts):
    """However unlucky the offsets, no more rows are used than if each text started at a tile of its own."""
    tiles = sum(-(-length // rule.period) for length, _ in texts)

    assert pack(texts, rule).rows <= max(2, tiles * rule.period)


@PERIODIC
def test_few_rows_are_wasted_on_many_texts(rule):
    """With random offsets the classes are about equally full: of 16,000 rows, not one in a hundred is wasted."""
    random = np.random.default_rng(0)
    texts = list(zip(random.integers(3, 30, 1000).tolist(), random.integers(0, 10**6, 1000).tolist(), strict=True))
    packing = pack(texts, rule)

    assert packing.rows <= 1.01 * packing.tokens


@EACH_RULE
def test_single_token(rule):
    """A text of one token alone is packed, too: in two rows at least, but for a product of its own."""
    packing = Packing.of([1], [5], rule)

    assert packing.tokens == 1
    assert packing.groups == (Group(0, 1, 1),)
    assert packing.rows == (max(2, rule.period) if rule.period else 1)


# ---------------------------------------------------------------- groups


@EACH_RULE
def test_equal_lengths_that_follow_each_other_are_a_group(rule):
    """A group has a length, the number of texts of that length that follow each other, and where it starts."""
    packing = Packing.of([7, 7, 3, 7, 1, 1, 1], range(7), rule)

    assert packing.groups == (Group(0, 2, 7), Group(14, 1, 3), Group(17, 1, 7), Group(24, 3, 1))


@FEW
@given(texts=TEXTS)
def test_groups_are_all_tokens_in_order(texts):
    """The groups' parts of an array, one after the other, are the array."""
    packing = pack(texts, RULES["any row"])
    x = np.arange(2 * packing.tokens).reshape(-1, 2)

    np.testing.assert_array_equal(np.concatenate([group.of(x).reshape(-1, 2) for group in packing.groups]), x)


def test_group_is_a_view():
    """A group's part is a matrix for each text, in the memory of the array."""
    x = np.arange(24).reshape(12, 2)
    part = Group(4, 2, 3).of(x)

    assert part.tolist() == [[[8, 9], [10, 11], [12, 13]], [[14, 15], [16, 17], [18, 19]]]
    assert np.shares_memory(part, x)


# ---------------------------------------------------------------- first tokens


@EACH_RULE
@FEW
@given(texts=TEXTS)
def test_first_tokens_are_one_a_text(rule, texts):
    """Of first tokens there is one a text, if it has any, in the same groups of texts, in order."""
    packing = pack(texts, rule)
    first = packing.first_tokens([offset for _, offset in texts], rule)

    assert first.tokens == sum(length > 0 for length, _ in texts)
    assert [(group.texts, group.tokens) for group in first.groups] == [
        (group.texts, min(group.tokens, 1)) for group in packing.groups
    ]
    assert first_of(first) == list(range(first.tokens))


@PERIODIC
@FEW
@given(texts=TEXTS)
def test_first_tokens_keep_their_class(rule, texts):
    """A first token has the class by itself that it has with its text: the offset's."""
    first = pack(texts, rule).first_tokens([offset for _, offset in texts], rule)

    assert [rule.classes[row % rule.period] for row in rows_of(first)] == [
        rule.classes[offset % rule.period] for length, offset in texts if length
    ]


@EACH_RULE
@FEW
@given(texts=TEXTS)
def test_rows_of_first_tokens(rule, texts):
    """``rows_of_first`` has, for each row of the first tokens, its row among all; to fill up, some first token's."""
    packing = pack(texts, rule)
    first = packing.first_tokens([offset for _, offset in texts], rule)
    rows = packing.rows_of_first(first)
    expected = rows_of(packing)[first_of(packing)]

    assert len(rows) == first.rows
    np.testing.assert_array_equal(rows[rows_of(first)], expected)
    assert set(rows.tolist()) == set(expected.tolist())
