"""Checkpoints: strict loading of named float arrays from the weights files of a folder.

Missing tensors, unexpected tensors, wrong shapes and values that are not finite are errors. The error lists every
wrong tensor. minibert never fills in values.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minibert.config import BertConfig
from minibert.errors import WeightsError
from minibert.files.checkpoint import names
from minibert.files.checkpoint.safetensors_file import open_safetensors, save_safetensors
from minibert.files.checkpoint.stored import StoredTensor
from minibert.params import BertParams, Embeddings, Layer
from minibert.safe.jsonfile import read_object
from minibert.safe.regular import is_there
from minibert.typing import Array, DType

__all__ = [
    "BertReader",
    "StoredTensor",
    "find_weights",
    "load_bert",
    "load_module",
    "open_bert",
    "open_safetensors",
    "open_weights",
    "save_safetensors",
]

#: The kinds of weights, in the order in which transformers looks for them. The first file of a kind shows that it is
#: there. After an index comes the pattern of its shards.
WEIGHTS_FILES = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


class BertReader(Mapping[str, Array]):
    """The tensors of the BertModel in a folder, by canonical name. Each access reads the tensor from the file.

    So a model can be built piece by piece, without two copies of it in memory.
    """

    def __init__(self, folder: Path, config: BertConfig, dtype: DType = np.float32) -> None:
        """Open the weights. Values will be converted to ``dtype`` (float32 or float64).

        Raises:
            WeightsError: As in :func:`open_bert`.
        """
        self._tensors = open_bert(folder, config)
        self._dtype = dtype

    def __getitem__(self, name: str) -> Array:
        """Return the values of a tensor. Raises WeightsError if a value is not finite."""
        return _read_finite(self._tensors[name], self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def embeddings(self) -> Embeddings:
        """Return the embeddings."""
        return names.embeddings(self)

    def layer(self, number: int) -> Layer:
        """Return one layer, counted from 0."""
        return names.layer(self, number)

    def relative_bias(self) -> Array | None:
        """Return MPNet's biases by distance, ``(buckets, h)``; None for other families."""
        return names.relative_bias(self)


def load_bert(folder: Path, config: BertConfig, dtype: DType = np.float32) -> BertParams:
    """Return the parameters of the BertModel in ``folder``, converted to ``dtype`` (float32 or float64).

    Raises:
        WeightsError: As in :func:`open_bert`, or a value is not finite.
    """
    reader = BertReader(folder, config, dtype)
    layers = tuple(reader.layer(number) for number in range(config.num_hidden_layers))
    return BertParams(reader.embeddings(), layers, names.pooler(reader), reader.relative_bias())


def open_bert(folder: Path, config: BertConfig) -> dict[str, StoredTensor]:
    """Return the unread tensors of the BertModel in ``folder`` by canonical name, without heads and buffers.

    Raises:
        WeightsError: The weights are missing, malformed, or do not match ``config``.
    """
    tensors = open_weights(folder)
    path = find_weights(folder)
    try:
        prefix = names.prefix_of(tensors)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}.") from None
    if config.num_hidden_layers > len(tensors):  # a huge number would take minutes and a huge list
        raise WeightsError(
            f"{path} must hold the tensors of num_hidden_layers = {config.num_hidden_layers} layers; "
            f"it holds {len(tensors)} in all."
        )
    stored_names, unexpected = names.canonical_names(tensors, prefix, config)
    expected = names.expected_shapes(config)
    if not any(names.is_pooler(name) for name in stored_names):
        expected = {name: shape for name, shape in expected.items() if not names.is_pooler(name)}
    found = {name: tensors[stored] for name, stored in stored_names.items()}
    _require_match(path, found, expected, unexpected, lambda name: names.own_name(name, config))
    return found


def load_module(folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: DType) -> dict[str, Array]:
    """Return the tensors in a module's folder by name, converted to ``dtype``. They must match ``shapes`` exactly.

    Raises:
        WeightsError: As in :func:`load_bert`.
    """
    tensors = open_weights(folder)
    expected = {name: (shape, "as config.json says") for name, shape in shapes.items()}
    _require_match(find_weights(folder), tensors, expected, list(tensors.keys() - shapes.keys()))
    return {name: _read_finite(tensor, dtype) for name, tensor in tensors.items()}


def find_weights(folder: Path) -> Path:
    """Return the weights file of ``folder``, or the index of its shards: the first of WEIGHTS_FILES that exists.

    Raises:
        WeightsError: The folder has none of them.
    """
    first_files = [kind[0] for kind in WEIGHTS_FILES]
    for path in (folder / name for name in first_files):
        if path.is_symlink() and not path.exists():
            raise WeightsError(f"{path} is a link to a file that does not exist. Is the download complete?")
        if is_there(path) and not path.is_dir():  # of any kind: do not use other weights instead
            return path
    raise WeightsError(f"{folder} holds no weights: it has none of {', '.join(first_files)}.")


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Return all unread tensors in the weights of ``folder``, by stored name.

    Raises:
        WeightsError: There are no weights, or a file is malformed.
    """
    path = find_weights(folder)
    return _open_shards(path) if path.suffix == ".json" else _open_file(path)


def _open_file(path: Path) -> dict[str, StoredTensor]:
    if path.suffix != ".bin":
        return open_safetensors(path)
    from minibert.files.checkpoint.torch_pickle import open_torch  # most models do not need it

    return open_torch(path)


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all shards that the ``*.index.json`` file names. They must match the index exactly."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise WeightsError(f"{index}: weight_map must map tensor names to file names.")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if Path(shard).name != shard or path.suffix not in {".safetensors", ".bin"}:
            raise WeightsError(f"{index}: {shard!r} must be the name of a weights file in the same folder.")
        if not is_there(path):
            raise WeightsError(f"{index} names the shard {shard}, which does not exist. Is the download complete?")
        opened = _open_file(path)
        promised = {name for name, file in weight_map.items() if file == shard}
        if opened.keys() != promised:
            raise WeightsError(
                f"{path} must hold the tensors that {index.name} says. {_listing('missing', promised - opened.keys())}"
                f"{_listing('unexpected', opened.keys() - promised)}"
            )
        tensors |= opened
    return tensors


def _require_match(
    path: Path,
    found: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[tuple[int, ...], str]],
    unexpected: list[str],
    called: Callable[[str], str] = str,
) -> None:
    """Raise one WeightsError that lists all missing and unexpected tensors, and all wrong shapes and types.

    ``called`` returns what the checkpoint's family calls an expected tensor.
    """
    missing = map(called, expected.keys() - found.keys())
    problems = [_listing("missing", missing), _listing("unexpected", unexpected)]
    for name in sorted(found.keys() & expected.keys()):
        tensor, (shape, words) = found[name], expected[name]
        if tensor.shape != shape:
            problems.append(f"\n  {tensor.name} must have shape {shape} {words}; it has {tensor.shape}")
        elif tensor.dtype not in {"F64", "F32", "F16", "BF16"}:
            problems.append(f"\n  {tensor.name} must hold floating-point numbers; it holds {tensor.dtype}")
    if any(problems):
        raise WeightsError(
            f"{path} does not fit its config.json. Is the config from another checkpoint?{''.join(problems)}"
        )


def _listing(what: str, tensor_names: Any) -> str:
    """Return an indented line for each name, or an empty text."""
    return "".join(f"\n  {what}: {name}" for name in sorted(tensor_names))


def _read_finite(tensor: StoredTensor, dtype: DType) -> Array:
    values = tensor.read()
    if tensor.dtype == "F16":  # numpy's min and max are slow in float16
        values = values.astype(np.float32)
    # min and max show both NaN and Inf. Each takes one pass and no temporary array.
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        count = int(values.size - np.isfinite(values).sum())
        raise WeightsError(
            f"{tensor.path}: {tensor.name} must hold finite numbers; {count} of {values.size} are NaN or infinite."
        )
    with np.errstate(over="ignore"):
        converted = values.astype(dtype, copy=False)
    if tensor.dtype == "F64" and not np.isfinite(converted).all():
        raise WeightsError(f"{tensor.path}: {tensor.name} holds float64 values too large for {np.dtype(dtype).name}.")
    return converted
