"""What the packed forward pass is written in: the signatures that each kind of device has."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from minibert.engine.packing import Packing
from minibert.params import Embeddings, LayerNorm
from minibert.typing import Array, Float, Int


class Fused(Protocol):
    """The fused operations, and the memory that their results are in: for one thread, or one stream.

    A result is overwritten by the next call of its operation; where an operation has a ``name``, of the same name.
    Arrays are the device's own, but for ids, rows and packings.
    """

    def embed_layer_norm(
        self, tables: Embeddings, ids: Int[Array, "tokens"], packing: Packing, eps: float
    ) -> Float[Array, "T H"]:
        """Return the sum of each token's word, position and type embedding, layer-normalized; all are of type 0."""
        ...

    def linear(
        self, name: str, x: Float[Array, "T K"], weight: Float[Array, "K N"], packing: Packing, longest_sum: int
    ) -> Float[Array, "T N"]:
        """Return ``x @ weight``, where each sum over K is made of partial sums of at most ``longest_sum`` products.

        Partial sums of equal length are what keeps the rounding error of a long sum small. The bias is left to the
        operation that follows, which reads the result anyway.
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
    ) -> Float[Array, "Tq H"]:
        """Return softmax((Q + query_bias) K^T) V of each text and head, the heads side by side; Q is scaled already.

        ``queries`` and ``keys`` have the same texts; of a text there may be fewer queries than keys. ``q`` may be
        used up.
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
        """Return LayerNorm(x + y + bias) in the memory of ``x``; ``y`` may be used up."""
        ...

    def take_first(self, x: Float[Array, "T H"], packing: Packing, first_tokens: Packing) -> Float[Array, "R H"]:
        """Return the rows of each text's first token."""
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
        """Return one vector a text, by :func:`minibert.pooling.pool`, in memory of its own; of length 1 if wanted.

        Of a text without tokens, whose vector is made of one masked zero, most modes give zeros.
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
        """Return ``compute()``, which may be played from a recording; the next call may overwrite it.

        Args:
            key: What tells the work from other work of the same model.
            ids: The ids of all tokens.
            packing: Where they lie.
            first_tokens: Where each text's first token lies, if it is computed alone in the last layer.
            compute: Computes vectors by operations of this object, from these facts alone.
        """
        ...

    def unpack(self, x: Float[Array, "T H"], packing: Packing) -> Float[Array, "tokens H"]:
        """Return the tokens' rows of ``x``, in the tokens' order, in the host's memory and as results are given."""
        ...

    def to_host(self, vectors: Any) -> Float[Array, "n D"]:
        """Return vectors that came from :meth:`pool` in the host's memory."""
        ...

    def free(self) -> None:
        """Give all memory back."""
        ...


def partial_sums(products: int, longest: int) -> list[slice]:
    """Return the parts, about equal, in which a sum of so many products is taken, each of at most ``longest``."""
    parts = -(-products // longest)
    return [slice(products * part // parts, products * (part + 1) // parts) for part in range(parts)]
