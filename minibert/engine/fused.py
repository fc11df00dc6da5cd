"""The fused operations of the packed forward pass: the interface that each kind of device implements."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np

from minibert.config import BertConfig
from minibert.engine.packing import Packing
from minibert.params import Embeddings, LayerNorm
from minibert.typing import Array, DType, Float, Int


class Fused(Protocol):
    """The fused operations, with the memory of their results. One object is for one thread or one stream.

    The next call of an operation overwrites its last result. Ids, rows and packings are on the host. All other arrays
    are on the device.
    """

    def embed_layer_norm(
        self, tables: Embeddings, ids: Int[Array, "tokens"], packing: Packing, config: BertConfig
    ) -> Float[Array, "T H"]:
        """Return the layer-normalized sum of each token's word, position and type embedding. All types are 0.

        Raises:
            TokenizerError: An id, or a position in a text, is outside the tables.
        """
        ...

    def layer(
        self,
        layer: Any,
        config: BertConfig,
        x: Float[Array, "T H"],
        packing: Packing,
        first_tokens: Packing | None = None,
        distance_bias: Float[Array, "h 2P-1"] | None = None,
    ) -> Float[Array, "R H"]:
        """Return the hidden states after an encoder layer. The call may overwrite ``x``.

        Args:
            layer: The parameters, as the engine loaded them.
            config: The sizes and settings of the model.
            x: The hidden states of all tokens: the result of :meth:`embed_layer_norm` or of the last call.
            packing: The rows of the tokens.
            first_tokens: The rows of the first tokens, if only these are wanted; else None.
            distance_bias: What is added to a score by the distance from the query to the key, from 1 - P to P - 1 for
                texts of at most P tokens; None if nothing is added.
        """
        ...

    def pool(
        self,
        modes: Sequence[str],
        hidden: Float[Array, "T H"],
        packing: Packing,
        exclude: int = 0,
        *,
        normalize: bool = False,
    ) -> Float[Array, "n D"]:
        """Return one vector per text, as :func:`minibert.pooling.pool`, in new memory; with ``normalize``, of length 1.

        A text without tokens counts as one masked token of zeros. Most modes give zeros for it.
        """
        ...

    def recorded(
        self,
        key: Hashable,
        ids: Int[Array, "tokens"],
        packing: Packing,
        first_tokens: Packing | None,
        compute: Callable[[], Float[Array, "n D"]],
    ) -> Float[Array, "n D"]:
        """Return ``compute()``, or replay a recording of it. The next call may overwrite the result.

        Args:
            key: It identifies this computation among others of the same model.
            ids: The ids of all tokens.
            packing: The rows of the tokens.
            first_tokens: The rows of the first tokens, if the last layer computes only these; else None.
            compute: Computes vectors with the operations of this object. It depends only on the arguments above.
        """
        ...

    def unpack(self, x: Float[Array, "T H"], packing: Packing) -> Float[Array, "tokens H"]:
        """Return the tokens' rows of ``x``, in the order of the tokens, on the host and in the dtype of results."""
        ...

    def to_host(self, vectors: Any) -> Float[Array, "n D"]:
        """Return a copy on the host of vectors from :meth:`pool`. On a CPU, return them unchanged."""
        ...

    def free(self) -> None:
        """Release all memory."""
        ...


class Operations(Fused, Protocol):
    """The operations in a layer, for implementations that compute a layer by them.

    If an operation has a ``name`` argument, only the next call with the same name overwrites its result.
    """

    def linear(
        self, name: str, x: Float[Array, "T K"], weight: Float[Array, "K N"], packing: Packing, longest_sum: int
    ) -> Float[Array, "T N"]:
        """Return ``x @ weight``. Each sum over K consists of partial sums of at most ``longest_sum`` products.

        Partial sums of equal length keep the rounding error of a long sum small. The next operation adds the bias,
        because it reads the result anyway.
        """
        ...

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
        """Return softmax((Q + query_bias) K^T + bias) V for each text and head, with concatenated heads.

        Q is already scaled. ``bias`` is that of the distance from the query to the key; see :meth:`layer`.

        ``queries`` and ``keys`` have the same texts. A text may have fewer queries than keys. The call may overwrite
        ``q``.
        """
        ...

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
        ...

    def add_layer_norm(
        self, x: Float[Array, "T H"], y: Float[Array, "T H"], bias: Float[Array, "H"], norm: LayerNorm, eps: float
    ) -> Float[Array, "T H"]:
        """Return LayerNorm(x + y + bias) in the memory of ``x``. The call may overwrite ``y``."""
        ...

    def take_first(self, x: Float[Array, "T H"], packing: Packing, first_tokens: Packing) -> Float[Array, "R H"]:
        """Return the row of each text's first token."""
        ...


class OnHost:
    """The operations that have nothing to do where the device is the host."""

    def recorded(
        self,
        key: Hashable,  # noqa: ARG002
        ids: Int[Array, "tokens"],  # noqa: ARG002
        packing: Packing,  # noqa: ARG002
        first_tokens: Packing | None,  # noqa: ARG002
        compute: Callable[[], Float[Array, "n D"]],
    ) -> Float[Array, "n D"]:
        """Return ``compute()``."""
        return compute()

    def to_host(self, vectors: Float[Array, "n D"]) -> Float[Array, "n D"]:
        """Return ``vectors``."""
        return vectors


def partial_sums(products: int, longest: int) -> list[slice]:
    """Split a sum of ``products`` products into parts of about equal length, each of at most ``longest``."""
    parts = -(-products // longest)
    return [slice(products * part // parts, products * (part + 1) // parts) for part in range(parts)]


def require_distance_bias(bias: Float[Array, "h 2P-1"], heads: int, keys: Packing, dtype: DType) -> None:
    """Raise ValueError unless an array has a bias for each head and for each distance in these texts.

    Implementations read it without a check of their own.
    """
    longest = int(keys.lengths.max(initial=1))
    if bias.ndim != 2 or len(bias) != heads or bias.shape[1] % 2 == 0 or bias.dtype != dtype:
        raise ValueError(
            f"distance_bias must be {np.dtype(dtype)} of shape ({heads}, 2 P - 1); "
            f"it is {bias.dtype} of shape {bias.shape}."
        )
    if bias.shape[1] < 2 * longest - 1:
        raise ValueError(
            f"distance_bias must have at least {2 * longest - 1} distances, for a text of {longest} tokens; it has "
            f"{bias.shape[1]}."
        )
    if not bias.flags.c_contiguous:
        raise ValueError(f"distance_bias must be contiguous; its strides are {bias.strides} bytes.")
