"""Where a token is: its row in the table of positions, and its distance from other tokens."""

import numpy as np

from minibert.arrays import array_namespace
from minibert.typing import Array, Float, Int

__all__ = ["BUCKETS", "bias_by_distance", "bias_of_pairs", "rows_of_positions"]

#: The number of MPNet's buckets of distances: 16 for keys up to the query, 16 for keys after it.
BUCKETS = 32
#: The first distance of each of the wide buckets, 8 to 15. The formula of Raffel et al. 2019,
#: https://arxiv.org/abs/1910.10683, has a logarithm; these integers are its steps for 32 buckets and a distance of 128.
_FIRST_OF_BUCKET = np.array([8, 12, 16, 23, 32, 46, 64, 91])


def rows_of_positions(ids: Int[Array, "B S"], padding_id: int | None) -> Int[Array, "B S"]:
    """Return the row of the position table for each token: 0, 1, 2, ... in every text.

    In the family of RoBERTa, the first row is ``padding_id + 1``. A token with this id, also one that a text spells
    out, has the row ``padding_id``, and does not count.
    """
    xp = array_namespace(ids)
    if padding_id is None:
        return xp.broadcast_to(xp.arange(ids.shape[1]), ids.shape)
    counts = ids != padding_id
    rows: Array = counts.cumsum(axis=1) * counts + padding_id
    return rows


def bias_by_distance(table: Float[Array, "buckets h"], tokens: int) -> Float[Array, "h 2S-1"]:
    """Return what MPNet adds to a score, by the distance from the query to the key: from ``1 - S`` to ``S - 1``.

    Each distance up to 7 has a bucket of its own; larger distances share buckets.
    """
    xp = array_namespace(table)
    distance = np.arange(1 - tokens, tokens)  # key minus query
    away = np.abs(distance)
    wide = 7 + np.searchsorted(_FIRST_OF_BUCKET, away, side="right")
    bucket = np.where(distance > 0, BUCKETS // 2, 0) + np.where(away < 8, away, wide)
    return xp.ascontiguousarray(table[xp.asarray(bucket)].T)


def bias_of_pairs(table: Float[Array, "buckets h"] | None, tokens: int) -> Float[Array, "h S S"] | float:
    """Return what is added to the score of each query and key; 0 without a table: only MPNet has one."""
    if table is None:
        return 0.0
    xp = array_namespace(table)
    place = xp.arange(tokens)
    return bias_by_distance(table, tokens)[:, place[None, :] - place[:, None] + tokens - 1]
