"""All kernels, by file: every template argument that minibert.engine.fused_cuda may ask for."""

from minibert.engine.fused_cuda import _ROW_LAYOUTS, _TENSOR_CORE_SIZES, ACTIVATIONS, STORAGES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


def names_of(file, storage):
    """Return the names of a file's kernels for a kind of storage."""
    return _kernels(storage)[file]


def with_bias(file, storage):
    """Return the names of those of a file's kernels that have a bias by distance."""
    return [name for name in names_of(file, storage) if file.startswith("attention") and name.endswith(", true>")]


def _kernels(storage):
    """Return the names of all kernels for a kind of storage, by file."""
    kind, itemsize = STORAGES[storage].cuda, STORAGES[storage].dtype.itemsize
    sizes = [] if storage == "float32" else _TENSOR_CORE_SIZES
    of_tensor_cores = [f"{kind}, {size}, {biased}" for biased in ("false", "true") for size in sizes]
    general = [f"{kind}, {chunks}, {biased}" for biased in ("false", "true") for chunks in (1, 2, 3, 4)]
    vectors = (16 // itemsize, 1)
    layouts = [f"{n}, {chunks}" for n, all_chunks in _ROW_LAYOUTS[itemsize].items() for chunks in all_chunks]
    activations = sorted(set(ACTIVATIONS.values()))
    return {
        "add_layer_norm": [f"add_layer_norm<{kind}, {layout}>" for layout in layouts],
        "attention": [f"attention<{each}>" for each in of_tensor_cores],
        "attention_general": [f"attention_general<{each}>" for each in general],
        "attention_short": [f"attention_short<{each}>" for each in of_tensor_cores],
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
