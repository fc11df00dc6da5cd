"""Array types with shapes: ``Float[Array, "B S H"]``.

The names and their meanings are those of jaxtyping, without the dependency: at run time they are
:data:`typing.Annotated`. If ``MINIBERT_CHECK_SHAPES`` is set (``tools/check`` sets it), they are
jaxtyping's own types, and the tests check every annotated shape and dtype.

Dimensions: B texts, S tokens in the longest text, H hidden size, h heads, d head size, I intermediate
size, V vocabulary, P positions, D embedding size.
"""

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING or "MINIBERT_CHECK_SHAPES" not in os.environ:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Num
    from typing import Annotated as Shaped
else:
    from jaxtyping import Bool, Float, Int, Num, Shaped

__all__ = [
    "Array",
    "Bool",
    "DType",
    "EncodeOptions",
    "Float",
    "Int",
    "Num",
    "OnTruncate",
    "PathLike",
    "Precision",
    "Shaped",
]

if TYPE_CHECKING:
    Array: TypeAlias = npt.NDArray[Any]
else:
    Array = np.ndarray
DType: TypeAlias = npt.DTypeLike | None
PathLike: TypeAlias = str | os.PathLike[str]
Precision: TypeAlias = Literal["float32", "int8", "uint8", "binary", "ubinary"]
OnTruncate: TypeAlias = Literal["warn", "ignore", "error"]


class EncodeOptions(TypedDict, total=False):
    """Arguments of ``encode`` on which the type of what it returns does not depend."""

    precision: Precision
    convert_to_tensor: Literal[False]
    device: str | None
    normalize_embeddings: bool
    truncate_dim: int | None
    pool: None
    chunk_size: None
