"""All kernels, by file: every template argument that minibert.engine.fused_cuda may ask for."""

from minibert.engine.fused_cuda import _ROW_LAYOUTS, _TENSOR_CORE_SIZES, ACTIVATIONS, STORAGES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


def names_of(file, storage):
    """Return the names of a file's kernels for a kind of storage."""
    return _kernels(storage)[file]


def _kernels(storage):
    """Return the names of all kernels for a kind of storage, by file."""
    kind, itemsize = STORAGES[storage].cuda, STORAGES[storage].dtype.itemsize
    sizes = [] if storage == "float32" else _TENSOR_CORE_SIZES
    vectors = (16 // itemsize, 1)
    layouts = [f"{n}, {chunks}" for n, all_chunks in _ROW_LAYOUTS[itemsize].items() for chunks in all_chunks]
    activations = sorted(set(ACTIVATIONS.values()))
    return {
        "add_layer_norm": [f"add_layer_norm<{kind}, {layout}>" for layout in layouts],
        "attention": [f"attention<{kind}, {size}>" for size in sizes],
        "attention_general": [f"attention_general<{kind}, {chunks}>" for chunks in (1, 2, 3, 4)],
        "attention_short": [f"attention_short<{kind}, {size}>" for size in sizes],
        "bias_activation": [f"bias_activation<{kind}, {each}, {n}>" for each in activations for n in vectors],
        "embed_layer_norm": [f"embed_layer_norm<{kind}, {layout}>" for layout in layouts],
        "l2_normalize": [f"l2_normalize<{n}>" for n in vectors] if storage == "float32" else [],
        "pool": [f"pool<{kind}, {n}>" for n in vectors],
        "take_rows": [f"take_rows<{kind}, {n}>" for n in vectors],
        "trial": [f"repeat_rows<{kind}>", f"compare_rows<{kind}>"],
    }


FILES = tuple(_kernels("float32"))


def storages_on(architecture):
    """Return the kinds of storage that a GPU of an architecture has."""
    return [storage for storage in STORAGES if storage != "bfloat16" or architecture >= 80]
