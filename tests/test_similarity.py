"""Similarity of vectors: the four functions, every row with every row, or row by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import assert_as_accurate

from minibert import similarity as module
from minibert.similarity import SIMILARITY, check_name, similarity, similarity_pairwise

NAMES = pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
DISTANCES = pytest.mark.parametrize("name", ["euclidean", "manhattan"])

A, B = [[3, 4], [0, 0]], [[1, 0], [6, 8]]
#: The similarity of every row of A with every row of B.
TABLE = {
    "cosine": [[0.6, 1], [0, 0]],
    "dot": [[3, 50], [0, 0]],
    "euclidean": [[-(20**0.5), -5], [-1, -10]],
    "manhattan": [[-6, -7], [-1, -14]],
}


def normal(*shape, seed=0, dtype=np.float32):
    """Return normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---------------------------------------------------------------- values


@NAMES
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64])
def test_table(name, dtype):
    """Each function gives sentence-transformers' values; distances are negative, a zero row has cosine 0 (2.10)."""
    scores = similarity(name, np.array(A, dtype), np.array(B, dtype))

    assert scores.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(scores, TABLE[name], rtol=1e-6)


@NAMES
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64])
def test_pairwise_is_the_diagonal(name, dtype):
    """Row by row, each function gives the diagonal of the table, in the same dtype (2.10)."""
    scores = similarity_pairwise(name, np.array(A, dtype), np.array(B, dtype))

    assert scores.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(scores, np.diagonal(TABLE[name]), rtol=1e-6)


@NAMES
def test_lists_are_taken(name):
    """Lists of numbers and lists of vectors, as ``encode(convert_to_numpy=False)`` returns them, are taken."""
    vectors = [np.array(row, np.float32) for row in A]

    np.testing.assert_allclose(similarity(name, vectors, B), TABLE[name], rtol=1e-6)
    np.testing.assert_allclose(similarity_pairwise(name, vectors, B), np.diagonal(TABLE[name]), rtol=1e-6)


@NAMES
def test_a_single_vector_is_one_row(name):
    """A vector on either side stands for one row (2.10)."""
    vector, rows = np.array(A[0], np.float32), np.array(B, np.float32)

    np.testing.assert_allclose(similarity(name, vector, rows), TABLE[name][:1], rtol=1e-6)
    np.testing.assert_allclose(similarity(name, rows, vector), np.transpose(TABLE[name][:1]), rtol=1e-6)
    np.testing.assert_allclose(similarity_pairwise(name, vector, rows[1]), [TABLE[name][0][1]], rtol=1e-6)


@NAMES
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_rows(name, n, m):
    """Without rows there are no scores, in a matrix of the right shape."""
    scores = similarity(name, normal(n, 4), normal(m, 4))

    assert (scores.shape, scores.dtype) == ((n, m), np.float32)
    assert similarity_pairwise(name, normal(0, 4), normal(0, 4)).shape == (0,)


@NAMES
def test_pairwise_equals_the_matrix(name):
    """Row by row gives what the diagonal of the matrix gives."""
    a, b = normal(30, 16), normal(30, 16, seed=1)

    np.testing.assert_allclose(
        similarity_pairwise(name, a, b), np.diagonal(similarity(name, a, b)), rtol=1e-6, atol=1e-6
    )


@settings(deadline=None)
@given(vector=arrays(np.float32, st.integers(1, 20), elements=st.floats(-1e4, 1e4, width=32)))
def test_cosine_with_itself(vector):
    """The cosine of a vector with itself is 1, or less only where its length is below 1e-12 (2.10)."""
    length = np.linalg.norm(vector.astype(np.float64))

    assert similarity("cosine", vector, vector).item() == pytest.approx(min(1.0, (length / 1e-12) ** 2), rel=1e-5)


# ---------------------------------------------------------------- distances


@DISTANCES
@pytest.mark.parametrize("rows", [1, 25, 26, 200])
def test_distance_of_equal_rows_is_zero(name, rows):
    """Equal rows are at distance 0 exactly, however many there are; torch.cdist's are not from 26 on (2.10)."""
    vectors = 100 + normal(rows, 384)
    scores = similarity(name, vectors, vectors.copy())

    assert (np.diagonal(scores) == 0).all()
    assert (scores[~np.eye(rows, dtype=bool)] < 0).all()
    assert (similarity_pairwise(name, vectors, vectors.copy()) == 0).all()


@DISTANCES
@pytest.mark.parametrize("block", [1, 60, 97, 10**9])
def test_blocks_do_not_change_the_scores(name, block, monkeypatch):
    """However many rows are computed at a time, one at least, the scores are the same bits."""
    a, b = normal(13, 5), normal(7, 5, seed=1)
    expected = similarity(name, a, b)
    monkeypatch.setattr(module, "_BLOCK", block)

    np.testing.assert_array_equal(similarity(name, a, b), expected)


@DISTANCES
def test_blocks_bound_the_temporary(name, monkeypatch):
    """No temporary has more elements than a block, once a block holds a row."""
    sizes = []

    def record(difference):
        sizes.append(difference.size)
        return difference.sum(axis=-1)

    monkeypatch.setattr(module, "_BLOCK", 100)
    monkeypatch.setattr(module, {"euclidean": "_negative_length", "manhattan": "_negative_sum"}[name], record)
    similarity(name, normal(13, 5), normal(7, 5))

    assert sizes == [70] * 6 + [35]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("function", [similarity, similarity_pairwise])
@pytest.mark.parametrize("name", ["cos", "Cosine", "", None])
def test_unknown_name_is_refused(function, name):
    """An unknown function is an error that lists the known ones."""
    with pytest.raises(ValueError, match=r"must be one of cosine, dot, euclidean, manhattan; it is "):
        function(name, A, B)


@NAMES
def test_known_name_is_returned(name):
    """A known name is its own answer."""
    assert check_name(name) == name
    assert name in SIMILARITY


@NAMES
@pytest.mark.parametrize("function", [similarity, similarity_pairwise])
def test_widths_must_match(function, name):
    """Vectors of different width are refused, with both widths; nothing broadcasts."""
    with pytest.raises(ValueError, match=r"the same width; got 4 and 1\."):
        function(name, normal(3, 4), normal(3, 1))


@NAMES
def test_pairwise_rows_must_match(name):
    """Row by row needs as many rows on both sides; one row is not repeated."""
    with pytest.raises(ValueError, match=r"as many rows on both sides; got 3 and 1\."):
        similarity_pairwise(name, normal(3, 4), normal(1, 4))


@pytest.mark.parametrize("function", [similarity, similarity_pairwise])
@pytest.mark.parametrize(
    "vectors", ["a text", ["a", "text"], np.zeros((1, 2, 2)), np.zeros((2, 2), complex), np.zeros(2, bool), None]
)
def test_what_is_not_a_matrix_of_numbers_is_refused(function, vectors):
    """Texts, higher dimensions and other types are refused, with dtype and shape."""
    with pytest.raises(ValueError, match=r"needs an array of numbers, \(n, D\) or \(D,\); got "):
        function("cosine", vectors, B)


@NAMES
@pytest.mark.parametrize("nothing", [[], (), np.zeros(0, np.float32), np.zeros((0, 2), np.float32)], ids=repr)
def test_no_vectors(name, nothing):
    """No vectors have no scores, with each other and with vectors of any width."""
    none = [similarity(name, nothing, nothing), similarity(name, nothing, B), similarity(name, B, nothing)]

    assert [scores.shape for scores in none] == [(0, 0), (0, 2), (2, 0)]
    assert similarity(name, nothing, np.ones((2, 2), np.float32)).dtype == np.float32
    assert similarity_pairwise(name, nothing, nothing).shape == (0,)
    with pytest.raises(ValueError, match="as many rows on both sides; got 0 and 2"):
        similarity_pairwise(name, nothing, B)


# ---------------------------------------------------------------- sentence-transformers


@pytest.mark.reference
@NAMES
@pytest.mark.parametrize("pairwise", [False, True], ids=["matrix", "pairwise"])
def test_as_accurate_as_sentence_transformers(name, pairwise):
    """Each function is as near to sentence-transformers' float64 values as its float32 ones are (2.10)."""
    import torch
    from sentence_transformers.util import SimilarityFunction

    find = SimilarityFunction.to_similarity_pairwise_fn if pairwise else SimilarityFunction.to_similarity_fn
    a, b = normal(20, 384), normal(20, 384, seed=1)
    a[3] = b[3] = 0
    peer, truth = (find(name)(*(torch.from_numpy(x.astype(dtype)) for x in (a, b))).numpy() for dtype in ("f4", "f8"))

    assert_as_accurate((similarity_pairwise if pairwise else similarity)(name, a, b), peer, truth)


@pytest.mark.reference
def test_names_are_those_of_sentence_transformers():
    """The names are sentence-transformers' own, but for those that compare several vectors a text (2.10)."""
    from sentence_transformers.util import SimilarityFunction

    assert set(SIMILARITY) == set(SimilarityFunction.possible_values()) - {"maxsim", "meanmaxsim"}
