"""The fused operations on a CPU: numpy, in place, on blocks of rows that fit in the cache."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minibert import ops, pooling
from minibert.config import BertConfig
from minibert.engine.fused import OnHost, partial_sums, require_distance_bias
from minibert.engine.packed import ByOperations, require_in_tables
from minibert.engine.packing import Packing
from minibert.params import Embeddings, LayerNorm
from minibert.typing import Array, DType, Float, Int

#: How many numbers one in-place step processes: few enough to stay in a core's cache, and enough that the overhead of
#: a numpy call is small.
_BLOCK = 65_536
#: How many attention scores are in memory at a time, for the same reasons.
_SCORES = 262_144
#: If a sum of exponentials is outside this range, the softmax of the text is computed again with scores shifted by
#: their maximum, as in the definition. Inside it, nothing has overflowed, and only negligible terms have underflowed.
_SAFE_SUMS = (1e-15, 1e15)


class FusedCpu(ByOperations, OnHost):
    """The operations of :class:`minibert.engine.fused.Fused`, and the memory of one thread."""

    def __init__(self, dtype: DType, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Make the operations for arrays of ``dtype``. They raise InterruptedError when ``cancelled()`` is true."""
        self.dtype = np.dtype(dtype)
        self._cancelled = cancelled
        self._memory: dict[str, Array] = {}

    def embed_layer_norm(
        self, tables: Embeddings, ids: Int[Array, "tokens"], packing: Packing, config: BertConfig
    ) -> Float[Array, "T H"]:
        """Return the layer-normalized sum of each token's word, position and type embedding. All types are 0."""
        require_in_tables(tables, ids, packing, config)
        x = self._array("hidden", packing.rows, tables.word.shape[1])
        position = packing.positions(ids, config.position_padding_id)
        if packing.token_at is not None:
            ids, position = ids[packing.token_at], position[packing.token_at]
        at = np.resize(np.arange(len(ids)), packing.rows)
        for block in self._blocks(x):
            rows = at[block]
            np.take(tables.word, ids[rows], axis=0, out=x[block], mode="clip")  # "raise" would copy; ids are checked
            x[block] += tables.token_type[0]
            x[block] += tables.position[position[rows]]
            self._layer_norm(x[block], tables.norm, config.layer_norm_eps, out=x[block])
        return x

    def linear(
        self, name: str, x: Float[Array, "T K"], weight: Float[Array, "K N"], packing: Packing, longest_sum: int
    ) -> Float[Array, "T N"]:
        """Return ``x @ weight``. Each sum over K consists of partial sums of at most ``longest_sum`` products."""
        y = self._array(name, len(x), weight.shape[1])
        for rows in packing.products:
            for k in partial_sums(len(weight), longest_sum):
                if self._cancelled():
                    raise InterruptedError
                if k.start == 0:
                    np.matmul(x[rows, k], weight[k], out=y[rows])
                else:
                    partial = self._array("partial", *y[rows].shape)
                    np.matmul(x[rows, k], weight[k], out=partial)
                    y[rows] += partial
        return y

    def attention(
        self,
        q: Float[Array, "Tq H"],
        k: Float[Array, "T H"],
        v: Float[Array, "T H"],
        query_bias: Float[Array, "H"],
        heads: int,
        queries: Packing,
        keys: Packing,
        distance_bias: Float[Array, "h 2P-1"] | None = None,
    ) -> Float[Array, "Tq H"]:
        """Return softmax((Q + query_bias) K^T + bias) V for each text and head, side by side. Overwrite ``q``."""
        if distance_bias is not None:
            require_distance_bias(distance_bias, heads, keys, self.dtype)
        for block in self._blocks(q):
            q[block] += query_bias
        q, k, v = self.in_order(q, queries, "q"), self.in_order(k, keys, "k"), self.in_order(v, keys, "v")
        context = self._array("context", queries.rows, q.shape[1])
        for group, of_keys in zip(queries.groups, keys.groups, strict=True):
            if group.tokens == 0:
                continue
            split = (group.texts, group.tokens, heads, -1)
            bias = None if distance_bias is None else _of_pairs(distance_bias, group.tokens, of_keys.tokens)
            self._attend(
                group.of(q).reshape(split).transpose(0, 2, 1, 3),
                of_keys.of(k).reshape(group.texts, of_keys.tokens, heads, -1).transpose(0, 2, 3, 1),
                of_keys.of(v).reshape(group.texts, of_keys.tokens, heads, -1).transpose(0, 2, 1, 3),
                group.of(context).reshape(split),
                bias,
            )
        if queries.token_at is None:
            context[queries.tokens :] = 0
            return context
        return np.take(context, queries.token_at, axis=0, out=self._array("heads", *context.shape), mode="clip")

    def linear_activation(
        self,
        x: Float[Array, "T K"],
        weight: Float[Array, "K N"],
        bias: Float[Array, "N"],
        activation: str,
        packing: Packing,
        longest_sum: int,
    ) -> Float[Array, "T N"]:
        """Return ``act(x @ weight + bias)``; see :meth:`linear`."""
        y = self.linear("inner", x, weight, packing, longest_sum)
        exact = activation in {"gelu", "gelu_python"} and self.dtype == np.float32
        act = ops.activation(activation)
        with np.errstate(over="ignore"):  # squares of large x; there gelu is linear or 0
            for block in self._blocks(y):
                y[block] += bias
                if exact:
                    _gelu(y[block], self._array("gelu", 2, *y[block].shape))
                else:
                    y[block] = act(y[block])
        return y

    def add_layer_norm(
        self, x: Float[Array, "T H"], y: Float[Array, "T H"], bias: Float[Array, "H"], norm: LayerNorm, eps: float
    ) -> Float[Array, "T H"]:
        """Return LayerNorm(x + y + bias) in the memory of ``x``. It overwrites ``y``."""
        for block in self._blocks(x):
            y[block] += bias
            y[block] += x[block]
            self._layer_norm(y[block], norm, eps, out=x[block])
        return x

    def in_order(self, x: Float[Array, "T N"], packing: Packing, name: str = "in order") -> Float[Array, "tokens N"]:
        """Return the tokens' rows of ``x`` in the order of the tokens; a view if ``x`` already has this order."""
        if packing.row_of is None:
            return x[: packing.tokens]
        return np.take(x, packing.row_of, axis=0, out=self._array(name, packing.tokens, x.shape[1]), mode="clip")

    def take_first(self, x: Float[Array, "T H"], packing: Packing, first_tokens: Packing) -> Float[Array, "R H"]:
        """Return the row of each text's first token."""
        rows = packing.rows_of_first(first_tokens)
        return np.take(x, rows, axis=0, out=self._array("rows", len(rows), x.shape[1]), mode="clip")

    def pool(
        self,
        modes: Sequence[str],
        hidden: Float[Array, "T H"],
        packing: Packing,
        exclude: int = 0,
        *,
        normalize: bool = False,
    ) -> Float[Array, "n D"]:
        """Return one vector per text, as :func:`minibert.pooling.pool`, in new memory; of length 1 if ``normalize``."""
        hidden = self.in_order(hidden, packing)
        vectors = [np.zeros((0, len(modes) * hidden.shape[1]), self.dtype)]
        for group in packing.groups:
            if group.tokens:
                of_tokens, mask = group.of(hidden), np.ones((group.texts, group.tokens), bool)
            else:  # pooling needs at least one token, so it gets a masked one
                of_tokens = np.zeros((group.texts, 1, hidden.shape[1]), self.dtype)
                mask = np.zeros((group.texts, 1), bool)
            vectors.append(pooling.pool(modes, of_tokens, mask, exclude=exclude))
        together = np.concatenate(vectors)
        return ops.l2_normalize(together) if normalize else together

    def unpack(self, x: Float[Array, "T H"], packing: Packing) -> Float[Array, "tokens H"]:
        """Return the tokens' rows of ``x``, in the order of the tokens."""
        return self.in_order(x, packing)

    def free(self) -> None:
        """Release all memory."""
        self._memory.clear()

    def _attend(
        self,
        q: Float[Array, "n h Sq d"],
        k: Float[Array, "n h d S"],
        v: Float[Array, "n h S d"],
        context: Float[Array, "n Sq h d"],
        bias: Float[Array, "h Sq S"] | None,
    ) -> None:
        """Write softmax(Q K^T + bias) V to ``context``, in blocks of texts and heads."""
        texts, heads, queries, _ = q.shape
        size = queries * k.shape[3]
        some_heads = min(heads, max(1, _SCORES // size))
        some_texts = max(1, _SCORES // (size * heads))
        for i in range(0, texts, some_texts):
            for j in range(0, heads, some_heads):
                at = np.s_[i : i + some_texts, j : j + some_heads]
                of_heads = None if bias is None else bias[j : j + some_heads]
                weights, sums = self._weights(q[at], k[at], of_heads)
                out = context[i : i + some_texts, :, j : j + some_heads]
                np.matmul(weights, v[at], out=out.transpose(0, 2, 1, 3))
                out /= sums.transpose(0, 2, 1)[..., None]

    def _weights(
        self, q: Float[Array, "n h Sq d"], k: Float[Array, "n h d S"], bias: Float[Array, "h Sq S"] | None
    ) -> tuple[Float[Array, "n h Sq S"], Float[Array, "n h Sq"]]:
        """Return the exponentials of Q K^T + bias, and their sums. Their quotient is the softmax."""
        weights = self._array("scores", *q.shape[:3], k.shape[3])
        ones = self._ones(k.shape[3])
        np.matmul(q, k, out=weights)
        if bias is not None:
            weights += bias
        # Texts with overflow are computed again below. Some kernels of OpenBLAS also call a product with inf invalid.
        with np.errstate(over="ignore", invalid="ignore"):
            np.exp(weights, out=weights)
            sums = np.matmul(weights, ones)
        least, most = _SAFE_SUMS
        if not (sums.min() > least and sums.max() < most):  # true for NaN, too
            shifted = ~((sums > least) & (sums < most)).all(axis=2)
            scores = np.matmul(q[shifted], k[shifted])
            if bias is not None:
                scores += bias
            scores -= scores.max(axis=-1, keepdims=True)
            weights[shifted] = np.exp(scores, out=scores)
            sums[shifted] = np.matmul(scores, ones)
        return weights, sums

    def _layer_norm(self, x: Float[Array, "rows H"], norm: LayerNorm, eps: float, out: Float[Array, "rows H"]) -> None:
        """Write LayerNorm(x) to ``out``. ``out`` may be ``x``. If it is not, ``x`` is overwritten, too."""
        ones, share = self._ones(x.shape[1]), self.dtype.type(1 / x.shape[1])
        for _ in range(2):  # as in ops.layer_norm: the second time removes the rounding error of a large mean
            mean = np.vecdot(x, ones)
            mean *= share
            x -= mean[:, None]
        scale = np.vecdot(x, x)
        scale *= share
        scale += eps
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        x *= scale[:, None]
        x *= norm.weight
        np.add(x, norm.bias, out=out)

    def _blocks(self, x: Float[Array, "T N"]) -> Iterator[slice]:
        """Yield ranges of rows that fit in the cache."""
        rows = max(1, _BLOCK // x.shape[1])
        for start in range(0, len(x), rows):
            yield slice(start, min(start + rows, len(x)))

    def _array(self, name: str, *shape: int) -> Array:
        """Return the memory with the name ``name``. It is reused: the next call with this name overwrites it."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = self._memory[name] = np.empty(size, self.dtype)
        return memory[:size].reshape(shape)

    def _ones(self, count: int) -> Float[Array, "count"]:
        """Return a vector of ones. A product with it is the fastest sum."""
        name = f"ones {count}"
        if name not in self._memory:
            self._memory[name] = np.ones(count, self.dtype)
        return self._memory[name]


class _TailFit(NamedTuple):
    """``Phi(-a) = exp(pull / ((a + far)^2 + width) - curve (a + near)^2 - level)`` for ``a >= 0``."""

    far: float
    width: float
    pull: float
    near: float
    curve: float
    level: float


# tools/fit_gelu.py computes these numbers. It also prints the errors in the docstring of `_gelu`.
_TAIL = _TailFit(far=3.4681232, width=4.3218818, pull=24.247276, near=0.17059813, curve=0.49451792, level=2.161789)


def _of_pairs(distance_bias: Float[Array, "h 2P-1"], queries: int, keys: int) -> Float[Array, "h Sq S"]:
    """Return the bias of each query and key of a text, without a copy: from query to query, it begins one earlier."""
    zero = distance_bias.shape[1] // 2
    of_head, step = distance_bias.strides
    return np.lib.stride_tricks.as_strided(
        distance_bias[:, zero:], (len(distance_bias), queries, keys), (of_head, -step, step), writeable=False
    )


def _gelu(x: Float[Array, "rows N"], scratch: Float[Array, "2 rows N"]) -> None:
    """Replace float32 ``x`` by ``x Phi(x)`` (:func:`minibert.ops.gelu`), in thirteen cheap passes and one ``exp``.

    Let ``tail = Phi(-|x|)``. Then ``x Phi(x)`` is the larger of ``x tail`` and ``x - x tail``: the first for negative
    ``x``, the second for positive ``x``. The error over all float32 numbers is at most ``1.85e-7 max(|gelu|, 0.5)``,
    and at most 8.0e-8 for negative ``x``. (:func:`minibert.ops.gelu` in float32: 1.7e-7 and 8.3e-8.) For standard
    normal ``x``, the root mean square of the error is 2.6e-8 (2.4e-8).
    """
    far, width, pull, near, curve, level = (np.float32(number) for number in _TAIL)
    y, bump = scratch
    np.abs(x, out=y)
    np.add(y, far, out=bump)
    bump *= bump
    bump += width
    np.divide(pull, bump, out=bump)
    y += near
    y *= y
    y *= -curve
    y += bump
    y += -level
    np.exp(y, out=y)
    y *= x
    x -= y
    np.maximum(x, y, out=x)
