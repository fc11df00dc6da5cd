"""Names in sentence-transformers that minibert does not have, and what to use instead."""

_THREADS = "encode computes on num_threads threads, and can be called from several threads"
_WHERE = 'name the device when you load the model: SentenceEncoder(..., device="cuda")'
_PRECISION = "name the precision when you load the model: SentenceEncoder(..., dtype=...)"
_NO_TRAINING = "minibert does not train: the weights never change"
_FILES = "minibert writes no models: copy the model's folder, or use `minibert convert`"
_INSIDE = "minibert.BertModel has the transformer, with its hidden states"

#: Attributes of SentenceTransformer.
METHODS = {
    **dict.fromkeys(("to", "cuda", "cpu"), _WHERE),
    **dict.fromkeys(("half", "float", "double", "bfloat16", "type"), _PRECISION),
    **dict.fromkeys(("save", "save_pretrained", "push_to_hub", "save_to_hub"), _FILES),
    **dict.fromkeys(
        ("start_multi_process_pool", "stop_multi_process_pool", "encode_multi_process"),
        f"there are no process pools: {_THREADS}",
    ),
    "eval": "leave it out: the model is always ready to encode",
    **dict.fromkeys(("train", "requires_grad_", "zero_grad", "old_fit", "smart_batching_collate"), _NO_TRAINING),
    **dict.fromkeys(("parameters", "named_parameters", "state_dict", "load_state_dict"), _INSIDE),
    **dict.fromkeys(
        ("modules", "children", "named_modules", "transformers_model", "forward", "_first_module"), _INSIDE
    ),
    "_last_module": _INSIDE,
    "compile": f"leave it out: there is nothing to compile; {_THREADS}",
    "evaluate": "encode the texts of the data set, and compare the vectors with similarity",
    "preprocess": "use tokenize",
    "truncate_sentence_embeddings": "use truncate_embeddings",
    "model_card_data": "minibert writes no model cards",
}

_SIMILARITY = (
    'use encoder.similarity and encoder.similarity_pairwise, or minibert.similarity.similarity("cosine", a, b)'
)

#: Attributes of the package sentence_transformers.
PACKAGE = {
    "SentenceTransformer": "use minibert.SentenceEncoder",
    "util": f"{_SIMILARITY}; for semantic_search use minibert.SearchIndex",
    **dict.fromkeys(("CrossEncoder", "SparseEncoder"), "minibert has sentence encoders only"),
    **dict.fromkeys(
        ("InputExample", "SentenceTransformerTrainer", "SentenceTransformerTrainingArguments", "losses", "datasets"),
        "minibert does not train models",
    ),
    "evaluation": METHODS["evaluate"],
    "models": "a model's modules are named in its folder, in modules.json",
}

ITEMS = f"the modules of a SentenceEncoder cannot be taken out: {_INSIDE}."


def missing(owner: str, name: str, instead: dict[str, str]) -> AttributeError:
    """Return the error for a missing attribute of ``owner``, with the hint in ``instead``, if any."""
    hint = f": {instead[name]}." if name in instead else ""
    return AttributeError(f"{owner} has no attribute {name!r}{hint}", name=name)
