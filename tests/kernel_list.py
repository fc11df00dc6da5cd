"""All kernels, by file: every template argument that minibert.fused.cuda may ask for."""

from minibert.fused.cuda import _ROW_LAYOUTS, _TENSOR_CORE_SIZES, ACTIVATIONS, STORAGES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


def names_of(file, storage):
    """Return the names of a file's kernels for a kind of storage."""
    kind = STORAGES[storage].cuda
    if file in {"attention", "attention_short"}:
        return [] if storage == "float32" else [f"{file}<{kind}, {size}>" for size in _TENSOR_CORE_SIZES]
    if file == "attention_general":
        return [f"attention_general<{kind}, {chunks}>" for chunks in (1, 2, 3, 4)]
    if file == "pool":
        return [f"pool<{kind}, {n}>" for n in (16 // STORAGES[storage].dtype.itemsize, 1)]
    if file == "l2_normalize":
        return ["l2_normalize<4>", "l2_normalize<1>"] if storage == "float32" else []
    if file == "bias_activation":
        structs = sorted(set(ACTIVATIONS.values()))
        at_once = 16 // STORAGES[storage].dtype.itemsize
        return [f"bias_activation<{kind}, {struct}, {n}>" for struct in structs for n in (at_once, 1)]
    layouts = _ROW_LAYOUTS[STORAGES[storage].dtype.itemsize]
    return [f"{file}<{kind}, {n}, {chunks}>" for n in layouts for chunks in layouts[n]]


FILES = (
    "add_layer_norm",
    "attention",
    "attention_general",
    "attention_short",
    "bias_activation",
    "embed_layer_norm",
    "l2_normalize",
    "pool",
)


def storages_on(architecture):
    """Return the kinds of storage that a GPU of an architecture has."""
    return [storage for storage in STORAGES if storage != "bfloat16" or architecture >= 80]
