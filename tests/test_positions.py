"""Where a token is, and its distance from others, against transformers' definitions (R1, R2, N2-N4)."""

import numpy as np
import pytest
from packed_cases import EACH_RULE

from minibert import positions
from minibert.engine.packing import Packing

#: The first distance of each bucket of MPNet, from the query to a key before it.
FIRSTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]


def texts_of(padding_id, count=30):
    """Return ids of texts, in which every third id is ``padding_id``."""
    rng = np.random.default_rng(0)
    return [np.where(rng.random(n) < 0.3, padding_id, rng.integers(0, 20, n)) for n in rng.integers(1, 40, count)]


@pytest.mark.parametrize(
    ("ids", "padding_id", "rows"),
    [
        ([7, 8, 9], None, [0, 1, 2]),
        ([1, 1, 1], None, [0, 1, 2]),
        ([0, 68, 69, 2], 1, [2, 3, 4, 5]),
        ([0, 68, 1, 69, 2], 1, [2, 3, 1, 4, 5]),
        ([1, 1, 68, 1], 1, [1, 1, 2, 1]),
        ([0, 68, 1, 3, 69, 2], 3, [4, 5, 6, 3, 7, 8]),
        ([5, 0, 5], 0, [1, 0, 2]),
    ],
)
def test_rows_of_positions(ids, padding_id, rows, xp):
    """The first token has the row after the padding id; a padding id in a text has its own row, and does not count."""
    found = positions.rows_of_positions(xp.asarray([ids, ids[::-1]]), padding_id)

    assert isinstance(found, xp.ndarray)
    assert found[0].tolist() == rows


@EACH_RULE
@pytest.mark.parametrize("padding_id", [None, 0, 1, 3])
def test_packed_rows(padding_id, rule):
    """In packed texts, each token has the row that it has in its text alone."""
    texts = texts_of(padding_id or 0)
    packing = Packing.of([len(ids) for ids in texts], [int(ids.sum()) for ids in texts], rule)
    alone = [positions.rows_of_positions(ids[None], padding_id)[0] for ids in texts]

    np.testing.assert_array_equal(packing.positions(np.concatenate(texts), padding_id), np.concatenate(alone))


def test_packed_rows_of_no_texts():
    """Texts without tokens have no rows."""
    from packed_cases import RULES

    packing = Packing.of([0, 0], [0, 0], RULES["any row"])

    assert packing.positions(np.zeros(0, np.int32), 1).tolist() == []


@pytest.mark.parametrize("distance", [0, 1, 6, 7, 8, 11, 12, 15, 16, 22, 23, 45, 46, 63, 64, 90, 91, 92, 200])
def test_buckets(distance, xp):
    """Keys before the query have the buckets 0 to 15, keys after it 16 to 31; wide buckets begin at FIRSTS."""
    bucket = max(number for number, first in enumerate(FIRSTS) if first <= distance)
    table = xp.asarray(np.stack([np.arange(32.0), -np.arange(32.0)], axis=1))
    bias = positions.bias_by_distance(table, 201)

    assert bias.shape == (2, 401)
    assert bias[:, 200 - distance].tolist() == [bucket, -bucket]
    assert bias[0, 200 + distance] == (bucket + 16 if distance else 0)


def test_bias_of_pairs(xp):
    """The bias of a query and a key is that of their distance; without a table, it is 0."""
    table = xp.asarray(np.random.default_rng(0).standard_normal((32, 3)))
    bias, by_distance = positions.bias_of_pairs(table, 50), positions.bias_by_distance(table, 50)

    assert bias.shape == (3, 50, 50)
    for query, key in [(0, 0), (3, 40), (40, 3), (49, 0), (0, 49), (20, 21)]:
        assert bias[:, query, key].tolist() == by_distance[:, key - query + 49].tolist()
    assert positions.bias_of_pairs(None, 50) == 0


@pytest.mark.reference
def test_buckets_are_those_of_transformers():
    """The table of integers has the buckets of transformers' formula with a logarithm, for all distances (N4)."""
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = np.arange(-9000, 9001)
    expected = MPNetEncoder.relative_position_bucket(torch.from_numpy(distances), num_buckets=32).numpy()

    np.testing.assert_array_equal(positions.bias_by_distance(np.arange(32.0)[:, None], 9001)[0], expected)


@pytest.mark.reference
@pytest.mark.parametrize("padding_id", [0, 1, 3])
def test_rows_are_those_of_transformers(padding_id):
    """The rows are those of transformers' function (R1, R2)."""
    import torch
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

    for ids in texts_of(padding_id):
        expected = XLMRobertaEmbeddings.create_position_ids_from_input_ids(torch.from_numpy(ids[None]), padding_id)

        np.testing.assert_array_equal(positions.rows_of_positions(ids[None], padding_id), expected)
