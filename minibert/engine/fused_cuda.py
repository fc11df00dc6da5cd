"""The fused operations on an NVIDIA GPU: cuBLASLt for matrix products, the kernels in kernels/cuda/ for the rest."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from minibert.config import BertConfig
from minibert.engine.fused import partial_sums, require_distance_bias
from minibert.engine.packed import ByOperations, require_in_tables
from minibert.engine.packing import Packing
from minibert.engine.recordings import Recordings
from minibert.engine.tables import (
    Batch,
    Table,
    Tables,
    attention_tiles,
    cu_seqlens,
    rows_of_first,
    tokens,
    with_empty_texts,
    with_empty_tiles,
)
from minibert.errors import ConfigError
from minibert.params import Embeddings, LayerNorm
from minibert.typing import Array, Float, Int

#: Number of queries per block of attention.cu, per block of attention_general.cu, and per warp of attention_short.cu;
#: and the largest number of keys of a text for attention_short.cu.
_TILE, _GENERAL_TILE, _SHORT_TILE, _SHORT_KEYS = 64, 16, 16, 16
_WARP = 32
#: Rows per block of the normalization kernels: one warp per row.
_ROWS = 4
#: The layouts of a row in a warp, by the bytes of a number: numbers per vector (largest first), and vectors per lane.
#: Each pair is one kernel. The first vectors have 16 bytes. The others are for the few models whose rows are not a
#: multiple of 16 bytes.
_ROW_LAYOUTS = {2: {8: (1, 2, 3, 4, 8), 4: (4, 16), 1: (4, 16)}, 4: {4: (1, 3, 6, 8, 16), 1: (4, 16)}}
#: Head sizes that attention.cu has tensor-core code for.
_TENSOR_CORE_SIZES = (16, 32, 64, 128)
_LARGEST_HEAD = 128
#: A block of pool.cu has 16 vectors of columns and 8 warps. Each warp has three statistics of every column.
_POOL_VECTORS, _POOL_WARPS, _STATISTICS = 16, 8, 3
#: The least limit on the number of float32 products in a partial sum; the forward pass may ask for a larger limit. Each
#: extra partial sum reads and writes the whole result. Measured on an H200, for 8,192 rows and the 3,072 products of
#: BERT-base's feed-forward layer: one sum has an error of 10.0e-7 (root mean square), sums of 1,024 have 5.7e-7 in 1.05
#: times the time, and sums of 384, as on a CPU, have 3.6e-7 in 1.18 times the time (tools/results/h200-kernels.json).
_LONGEST_SUM = 1024
#: The largest number of modes that pool.cu can concatenate: each has four bits in an int.
_MOST_MODES = 7

#: The structs of activations.cuh, by their names in `hidden_act`.
ACTIVATIONS = {
    "gelu": "Gelu",
    "gelu_10": "Gelu10",
    "gelu_accurate": "GeluTanh",
    "gelu_fast": "GeluTanh",
    "gelu_new": "GeluTanh",
    "gelu_python": "Gelu",
    "gelu_python_tanh": "GeluTanh",
    "gelu_pytorch_tanh": "GeluTanh",
    "hardswish": "HardSwish",
    "laplace": "Laplace",
    "leaky_relu": "LeakyRelu",
    "linear": "Identity",
    "mish": "Mish",
    "quick_gelu": "QuickGelu",
    "relu": "Relu",
    "relu2": "ReluSquared",
    "relu6": "Relu6",
    "sigmoid": "Sigmoid",
    "silu": "Silu",
    "sqrtsoftplus": "SqrtSoftplus",
    "swish": "Silu",
    "tanh": "Tanh",
}
#: The numbers of `Mode` in pool.cu.
POOLING_MODES = {"cls": 1, "lasttoken": 2, "max": 3, "mean": 4, "mean_sqrt_len_tokens": 5, "weightedmean": 6}


class Storage(NamedTuple):
    """The number type in which hidden states and matrices are stored.

    Attributes:
        name: The user's name for it.
        cuda: Its type in the kernels.
        dtype: The dtype of its arrays. numpy has no bfloat16, so these arrays have the bits as uint16.
    """

    name: str
    cuda: str
    dtype: np.dtype[Any]

    def narrow(self, numbers: Float[Array, "..."]) -> Array:
        """Convert numbers to this type, rounded to nearest, ties to even. In bfloat16, NaN stays NaN.

        Raises:
            ConfigError: A number is too large for float16.
        """
        if self.name == "bfloat16":
            bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            rounded[(bits & 0x7FFFFFFF) > 0x7F800000] = 0x7FFF  # NaN: rounding could overflow its mantissa
            return rounded.astype(np.uint16)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(numbers, self.dtype)
        if self.name == "float16" and not np.isfinite(stored).all():
            raise ConfigError(
                f"with float16, every weight must be within +-65504; one is {np.abs(numbers).max():.3g}. "
                'Choose dtype="bfloat16" or dtype="float32".'
            )
        return stored

    def widen(self, stored: Any) -> Any:
        """Convert stored numbers, on any device, to float32."""
        if self.name == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)


#: The storage types, by the user's names.
STORAGES = {
    "float16": Storage("float16", "float16", np.dtype(np.float16)),
    "bfloat16": Storage("bfloat16", "bfloat16", np.dtype(np.uint16)),
    "float32": Storage("float32", "float", np.dtype(np.float32)),
}


class Kernel(NamedTuple):
    """A kernel in kernels/.

    Attributes:
        file: Its file, without the suffix.
        name: Its name with template arguments.
    """

    file: str
    name: str


class Device(Protocol):
    """The device operations that :class:`FusedCuda` needs. The tests implement them on a CPU.

    Attributes:
        shared_memory: The largest shared memory of a block, in bytes.
    """

    shared_memory: int

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a new array on the device. Raise MemoryError if it does not fit."""
        ...

    def upload(self, host: Array) -> Any:
        """Return a copy of a host array on the device. The host array may change when this returns."""
        ...

    def download(self, array: Any) -> Array:
        """Return a copy on the host."""
        ...

    def launch(
        self, kernel: Kernel, grid: tuple[int, int], threads: int, arguments: tuple[Any, ...], shared: int
    ) -> None:
        """Run a kernel on ``grid`` blocks of ``threads`` threads, with ``shared`` bytes of shared memory."""
        ...

    def matmul(self, x: Any, weight: Any, out: Any, storage: Storage, *, add: bool) -> None:
        """Write ``x @ weight`` to ``out``, or add it to ``out``. Sums are in float32."""
        ...

    def write(self, array: Any, host: Array) -> None:
        """Copy a host array to an array on the device. The host array may change when this returns."""
        ...

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record ``call``, and return a function that repeats it. ``call`` must not allocate or copy arrays."""
        ...


class FusedCuda(ByOperations):
    """The operations of :class:`minibert.engine.fused.Fused`, and the memory of one stream.

    The host checks the shapes, types and layouts of all arguments. The host waits for the device only when it copies
    vectors to the host.

    Attributes:
        cancelled: If this returns true, the next matrix product raises InterruptedError.
    """

    def __init__(self, device: Device, storage: Storage, *, record: bool = False) -> None:
        """Make the operations for arrays of ``storage``. With ``record``, they record small batches."""
        self.device = device
        self.storage = storage
        self.cancelled: Callable[[], bool] = lambda: False
        self._memory: dict[str, Any] = {}
        self._tables = Tables(device.upload)
        self._recordings = Recordings(device, self._tables, enabled=record)

    def embed_layer_norm(
        self, tables: Embeddings, ids: Int[Array, "tokens"], packing: Packing, config: BertConfig
    ) -> Float[Array, "T H"]:
        """Return the layer-normalized sum of each token's word, position and type embedding. All types are 0."""
        require_in_tables(tables, ids, packing, config)
        width = tables.word.shape[1]
        for name, table in (("word", tables.word), ("position", tables.position), ("token_type", tables.token_type)):
            self._require(f"the {name} table", table, (len(table), width))
        x = self._array("hidden", packing.rows, width)
        if packing.rows == 0:
            return x
        self._tables.of(packing, ids=ids)
        padding_id = config.position_padding_id
        of_tokens = self._tables.get(("tokens", padding_id), Table(functools.partial(tokens, padding_id=padding_id)))
        self._launch_rows(
            "embed_layer_norm",
            x,
            (x, of_tokens[0], of_tokens[1], tables.word, tables.position, tables.token_type[0]),
            tables.norm,
            config.layer_norm_eps,
        )
        return x

    def linear(
        self, name: str, x: Float[Array, "T K"], weight: Float[Array, "K N"], packing: Packing, longest_sum: int
    ) -> Float[Array, "T N"]:
        """Return ``x @ weight``. In float32, long sums over K consist of partial sums; see :data:`_LONGEST_SUM`.

        In 16-bit types, all products are in one sum, and it is rounded once. The next operation adds the bias.
        """
        self._require("x", x, (packing.rows, weight.shape[0]))
        self._require("weight", weight, weight.shape, contiguous=False)
        y = self._array(name, len(x), weight.shape[1])
        if self.cancelled():
            raise InterruptedError
        longest_sum = max(longest_sum, _LONGEST_SUM)
        parts = partial_sums(len(weight), longest_sum) if self.storage.name == "float32" else [slice(None)]
        for number, k in enumerate(parts):
            if len(x):
                self.device.matmul(x[:, k], weight[k], y, self.storage, add=number > 0)
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
        """Return softmax((Q + query_bias) K^T + bias) V for each text and head, with concatenated heads.

        The bias by distance is in float32 for every storage type: it is added to scores in float32, and it is small.
        """
        width = q.shape[1]
        require_supported(width, heads)
        size = width // heads
        for name, array, packing in (("q", q, queries), ("k", k, keys), ("v", v, keys)):
            self._require(name, array, (packing.rows, width), contiguous=False)
        if k.strides[0] != v.strides[0]:
            raise ValueError(f"k and v must have the same strides; they have {k.strides[0]} and {v.strides[0]}.")
        self._require_float("query_bias", query_bias, width)
        if distance_bias is not None:
            require_distance_bias(distance_bias, heads, keys, np.float32)
        itemsize, kind = self.storage.dtype.itemsize, self.storage.cuda
        of_tensor_cores, of_short = 5 * _TILE * size * itemsize, 4 * 3 * _SHORT_TILE * size * itemsize  # shared memory
        has_tensor_cores = self.storage.name != "float32" and size in _TENSOR_CORE_SIZES
        on_tensor_cores = has_tensor_cores and of_tensor_cores <= self.device.shared_memory
        longest_short = _SHORT_KEYS if has_tensor_cores and of_short <= self.device.shared_memory else 0
        first = queries is not keys
        self._tables.of(keys, first_tokens=queries if first else None)
        short = self._tiles_of(_SHORT_TILE, 1, longest_short, first=first)
        tiles = self._tiles_of(_TILE if on_tensor_cores else _GENERAL_TILE, longest_short + 1, None, first=first)
        context = self._array("context", queries.rows, width)
        strides = np.int32(q.strides[0] // itemsize), np.int32(k.strides[0] // itemsize)
        arrays, numbers = (context, q, k, v, query_bias), (*strides, np.int32(heads))
        biased = "false" if distance_bias is None else "true"
        bias = query_bias if distance_bias is None else distance_bias  # kernels without the bias do not read it
        of_bias = bias, np.int32(bias.shape[-1])
        kernel = Kernel("attention_short", f"attention_short<{kind}, {size}, {biased}>")
        grid = -(-len(short) * heads // 4), 1
        self._launch(kernel, grid, 128, (*arrays, short, *numbers, np.int32(len(short)), *of_bias), of_short)
        if on_tensor_cores:
            kernel = Kernel("attention", f"attention<{kind}, {size}, {biased}>")
            of_tiles = (*arrays, tiles, *numbers, *of_bias, np.int32(first))
            self._launch(kernel, (len(tiles), heads), 128, of_tiles, of_tensor_cores)
        else:
            kernel = Kernel("attention_general", f"attention_general<{kind}, {-(-size // _WARP)}, {biased}>")
            shared = 4 * (_GENERAL_TILE * size + _WARP * (2 * size + 1))
            of_small_tiles = (*arrays, tiles, *numbers, np.int32(size), *of_bias, np.int32(first))
            self._launch(kernel, (len(tiles), heads), 128, of_small_tiles, shared)
        return context

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
        width = weight.shape[1]
        self._require_float("bias", bias, width)
        y = self.linear("inner", x, weight, packing, longest_sum)
        at_once = vector_of(width, self.storage.dtype.itemsize)
        kernel = Kernel(
            "bias_activation", f"bias_activation<{self.storage.cuda}, {ACTIVATIONS[activation]}, {at_once}>"
        )
        blocks = -(-len(y) * (width // at_once) // 256)
        self._launch(kernel, (blocks, 1), 256, (y, bias, np.int32(len(y)), np.int32(width)))
        return y

    def add_layer_norm(
        self, x: Float[Array, "T H"], y: Float[Array, "T H"], bias: Float[Array, "H"], norm: LayerNorm, eps: float
    ) -> Float[Array, "T H"]:
        """Return LayerNorm(x + y + bias) in the memory of ``x``."""
        self._require("y", y, x.shape)
        self._require_float("bias", bias, x.shape[1])
        self._launch_rows("add_layer_norm", x, (x, y, bias), norm, eps)
        return x

    def take_first(self, x: Float[Array, "T H"], packing: Packing, first_tokens: Packing) -> Float[Array, "R H"]:
        """Return the row of each text's first token."""
        width = x.shape[1]
        self._require("x", x, (packing.rows, width))
        self._tables.of(packing, first_tokens=first_tokens)
        rows = self._tables.get("rows of first", Table(rows_of_first))
        out = self._array("rows", first_tokens.rows, width)
        at_once = vector_of(width, self.storage.dtype.itemsize)
        kernel = Kernel("take_rows", f"take_rows<{self.storage.cuda}, {at_once}>")
        blocks = -(-len(rows) * (width // at_once) // 256)
        self._launch(kernel, (blocks, 1), 256, (out, x, rows, np.int32(len(rows)), np.int32(width)))
        return out

    def pool(
        self,
        modes: Sequence[str],
        hidden: Float[Array, "T H"],
        packing: Packing,
        exclude: int = 0,
        *,
        normalize: bool = False,
    ) -> Float[Array, "n D"]:
        """Return one float32 vector per text, as :func:`minibert.pooling.pool`; with ``normalize``, of length 1."""
        if len(modes) > _MOST_MODES:
            raise ConfigError(f"on a GPU, pooling_mode must name at most {_MOST_MODES} modes; it names {len(modes)}.")
        self._require("hidden", hidden, (packing.rows, hidden.shape[1]))
        width = hidden.shape[1]
        self._tables.of_pooled(packing)
        bounds = self._tables.get("cu_seqlens", Table(cu_seqlens, with_empty_texts))
        shape = len(bounds) - 1, len(modes) * width
        out = self._recordings.array("vectors", shape, np.dtype(np.float32))
        if out is None:
            out = self.device.empty(shape, np.dtype(np.float32))
        codes = sum(POOLING_MODES[mode] << 4 * position for position, mode in enumerate(modes))
        at_once = vector_of(width, self.storage.dtype.itemsize)
        columns = _POOL_VECTORS * at_once
        self._launch(
            Kernel("pool", f"pool<{self.storage.cuda}, {at_once}>"),
            (shape[0], -(-width // columns)),
            _POOL_WARPS * _WARP,
            (out, hidden, bounds, np.int32(codes), np.int32(exclude), np.int32(width)),
            4 * _STATISTICS * _POOL_WARPS * columns,
        )
        if normalize:
            rows, width = shape
            kernel = Kernel("l2_normalize", f"l2_normalize<{vector_of(width, 4)}>")
            grid = (-(-rows // _ROWS), 1)
            self._launch(kernel, grid, _ROWS * _WARP, (out, np.int32(rows), np.int32(width)))
        return out

    def recorded(
        self,
        key: Hashable,
        ids: Int[Array, "tokens"],
        packing: Packing,
        first_tokens: Packing | None,
        compute: Callable[[], Float[Array, "n D"]],
    ) -> Float[Array, "n D"]:
        """Return ``compute()``. A small batch replays the CUDA graph of an earlier batch of the same shape."""
        return self._recordings.run(key, Batch(ids, packing, first_tokens), compute)[: len(packing.lengths)]

    def unpack(self, x: Float[Array, "T H"], packing: Packing) -> Float[Array, "tokens H"]:
        """Return the tokens' rows of ``x`` on the host, in float32."""
        return self.storage.widen(self.device.download(x[: packing.tokens]))

    def to_host(self, vectors: Any) -> Float[Array, "n D"]:
        """Return vectors on the host."""
        return self.device.download(vectors)

    def free(self) -> None:
        """Release all memory."""
        self._memory.clear()
        self._tables.begin(None)
        self._recordings.clear()

    def _tiles_of(self, size: int, least_keys: int, most_keys: int | None, *, first: bool) -> Any:
        """Return the tiles of the batch on the device; see :func:`attention_tiles`."""

        def make(batch: Batch) -> Int[Array, "n 4"]:
            return attention_tiles(batch, size, least_keys=least_keys, most_keys=most_keys, first=first)

        return self._tables.get(("tiles", size, least_keys, most_keys, first), Table(make, with_empty_tiles))

    def _launch_rows(self, name: str, x: Any, arguments: tuple[Any, ...], norm: LayerNorm, eps: float) -> None:
        """Launch a kernel that normalizes rows. ``x`` gives their shape."""
        rows, width = x.shape
        self._require("x", x, (rows, width))
        self._require_float("the layer norm's weight", norm.weight, width)
        self._require_float("the layer norm's bias", norm.bias, width)
        template = f"{name}<{self.storage.cuda}, {', '.join(map(str, row_layout(width, x.dtype.itemsize)))}>"
        numbers = (np.float32(eps), np.int32(rows), np.int32(width))
        grid = (-(-rows // _ROWS), 1)
        self._launch(Kernel(name, template), grid, _ROWS * _WARP, (*arguments, norm.weight, norm.bias, *numbers))

    def _launch(
        self, kernel: Kernel, grid: tuple[int, int], threads: int, arguments: tuple[Any, ...], shared: int = 0
    ) -> None:
        if all(grid):  # for an empty grid, CuPy would run one block
            self.device.launch(kernel, grid, threads, arguments, shared)

    def _require(self, name: str, array: Any, shape: tuple[int, ...], *, contiguous: bool = True) -> None:
        """Raise ValueError unless an array has this shape, the storage type, and contiguous rows."""
        if array.shape != shape or array.dtype != self.storage.dtype:
            raise ValueError(
                f"{name} must be {self.storage.dtype} of shape {shape}; it is {array.dtype} of shape {array.shape}."
            )
        if not (array.flags.c_contiguous if contiguous else array.strides[-1] == array.dtype.itemsize):
            raise ValueError(f"{name} must be contiguous; its strides are {array.strides} bytes.")

    @staticmethod
    def _require_float(name: str, array: Any, width: int) -> None:
        """Raise ValueError unless an array is a contiguous float32 vector of this width."""
        if array.shape != (width,) or array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} must be contiguous float32 of shape {(width,)}; it is {array.dtype} of shape {array.shape}."
            )

    def _array(self, name: str, *shape: int) -> Any:
        """Return the memory with the name ``name``. It is reused: the next call with this name overwrites it."""
        recorded = self._recordings.array(name, shape, self.storage.dtype)
        if recorded is not None:
            return recorded
        size = shape[0] * shape[1]
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            self._memory.pop(name, None)
            del memory  # release it before the new allocation
            memory = self._memory[name] = self.device.empty((size,), self.storage.dtype)
        return memory[:size].reshape(shape)


def require_supported(hidden_size: int, heads: int) -> None:
    """Raise ConfigError unless there are kernels for a model of this size."""
    row_layout(hidden_size, 2)  # the limits are the same for all storages
    if hidden_size > heads * _LARGEST_HEAD:
        raise ConfigError(
            f"on a GPU, the head size must be at most {_LARGEST_HEAD}: hidden_size / num_attention_heads is "
            f"{hidden_size} / {heads}."
        )


def row_layout(width: int, itemsize: int) -> tuple[int, int]:
    """Return the layout of a row in layer_norm.cuh: numbers per vector, and vectors per lane.

    Raises:
        ConfigError: There is no kernel for rows of this width.
    """
    layouts = _ROW_LAYOUTS[itemsize]
    at_once = next(numbers for numbers in layouts if width % numbers == 0)
    for chunks in layouts[at_once]:
        if width <= at_once * _WARP * chunks:
            return at_once, chunks
    most = at_once * _WARP * layouts[at_once][-1]
    raise ConfigError(
        f"on a GPU, hidden_size must be at most {most}{' unless it is a multiple of 4' if most < 2048 else ''}; "
        f"it is {width}."
    )


def vector_of(width: int, itemsize: int) -> int:
    """Return how many numbers a kernel reads at once: 16 bytes, or one number if rows are not multiples of 16 bytes."""
    return 1 if width * itemsize % 16 else 16 // itemsize
