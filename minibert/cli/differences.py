"""Reasons why other runtimes give different vectors for a repo, or no vectors.

"sentence-transformers" means version 6 with transformers 5. The source for text-embeddings-inference is its
``router/src/lib.rs``, https://github.com/huggingface/text-embeddings-inference.
"""

from collections.abc import Iterator
from typing import Any

from tokenizers import pre_tokenizers

from minibert.cli.opened import Casing, OpenedRepo
from minibert.files.checkpoint import find_weights
from minibert.modules.kinds import Pooling
from minibert.safe.regular import is_there


def differences(opened: OpenedRepo) -> list[str]:
    """Return one or two sentences about each reason that applies to the repo."""
    topics = (_pooling, _modules, _other_vectors, _precision, _max_length, _tokenizer_json, _prompts, _weights)
    return [difference for topic in topics for difference in topic(opened)]


def _pooling(opened: OpenedRepo) -> Iterator[str]:
    if any(path is None for _, path in opened.repo.modules):
        yield (
            "No modules.json says how to pool: minibert and sentence-transformers take the mean; "
            "text-embeddings-inference takes cls."
        )
        return
    for module in opened.modules:
        if isinstance(module, Pooling):
            if module.modes != ("mean",):
                yield f"Pooling is {' + '.join(module.modes)}: runtimes that always take the mean give other vectors."
            if not module.include_prompt:
                yield "A prompt's tokens are not pooled: runtimes that pool all tokens differ where there is one."


def _modules(opened: OpenedRepo) -> Iterator[str]:
    kinds = [kind for kind, _ in opened.repo.modules]
    if others := [kind for kind in kinds if kind not in {"Pooling", "Normalize", "Dropout"}]:
        yield f"The model goes on after the transformer with {', '.join(others)}: runtimes that only pool leave it out."
    if "Normalize" not in kinds:
        yield "Vectors keep their length: text-embeddings-inference scales them to length 1 unless told otherwise."
    if opened.repo.truncate_dim is not None:
        yield (
            f"Vectors are cut to {opened.repo.truncate_dim} dimensions (truncate_dim in "
            "config_sentence_transformers.json): runtimes that do not read it return them all."
        )


def _other_vectors(opened: OpenedRepo) -> Iterator[str]:
    found = [name for name in ("sparse_linear.pt", "colbert_linear.pt") if is_there(opened.repo.folder / name)]
    if found:
        yield (
            f"{' and '.join(found)} are not read: minibert and sentence-transformers return dense vectors only. "
            "FlagEmbedding also returns sparse vectors and vectors of tokens."
        )


def _precision(opened: OpenedRepo) -> Iterator[str]:
    stored = next((tensor.dtype for tensor in opened.stored if tensor.dtype in {"F64", "F32", "F16", "BF16"}), "")
    by_weights = {"F16": "float16", "BF16": "bfloat16"}.get(stored, "float32")
    dtype = str(opened.repo.dtype or by_weights).removeprefix("torch.")
    if dtype in {"float16", "bfloat16"}:
        reason = "config.json says so" if opened.repo.dtype else "the weights are"
        returned = " and returns float16" if dtype == "float16" else ""
        yield (
            f"sentence-transformers computes in {dtype}{returned}, because {reason}; minibert computes in float32, so "
            "its vectors are more precise, and differ by the other's rounding."
        )


def _max_length(opened: OpenedRepo) -> Iterator[str]:
    limit, positions = opened.max_seq_length, opened.repo.config.max_tokens
    yield from _positions_after_padding(opened)
    tokenizer_limit = min(opened.tokenizer.model_max_length or positions, positions)
    is_stated = opened.repo.transformer.max_seq_length is not None
    if is_stated and tokenizer_limit != limit:
        yield (
            f"Texts are cut to {limit} tokens, as {opened.transformer_config} says: runtimes that look only at the "
            f"tokenizer and config.json cut to {tokenizer_limit}."
        )
    elif limit != positions:
        such = "" if is_stated else ", such as text-embeddings-inference,"
        yield (
            f"Texts are cut to {limit} tokens, as {opened.max_seq_length_source} says: runtimes that look only at "
            f"config.json{such} take {positions}."
        )


def _positions_after_padding(opened: OpenedRepo) -> Iterator[str]:
    """Yield the differences of runtimes that take every row of the position table for a token."""
    config = opened.repo.config
    rows, tokens = config.max_position_embeddings, config.max_tokens
    stated = opened.repo.transformer.max_seq_length
    allowed = min(opened.tokenizer.model_max_length or rows, rows) if stated is None else stated
    if allowed > tokens:
        yield (
            f"Positions begin after the padding id, so {rows} positions are enough for {tokens} tokens: "
            f"sentence-transformers allows {allowed} tokens, and fails on texts of more than {tokens}; minibert cuts "
            f"them to {tokens}."
        )
    if config.model_type == "mpnet" and stated is None:
        yield f"text-embeddings-inference allows {rows} tokens for MPNet, {rows - tokens} more than it has positions."


def _tokenizer_json(opened: OpenedRepo) -> Iterator[str]:
    """Yield the differences of a runtime that loads tokenizer.json as it is."""
    content = opened.tokenizer_files.json
    if not content:
        yield "There is no tokenizer.json: text-embeddings-inference, which needs one, cannot load the repo."
        return
    limit = (content.get("truncation") or {}).get("max_length", opened.max_seq_length)
    if limit != opened.max_seq_length:
        yield (
            f"tokenizer.json cuts texts to {limit} tokens, which minibert and sentence-transformers override with "
            f"{opened.max_seq_length}: a runtime that loads it as it is cuts elsewhere."
        )
    strategy = (content.get("padding") or {}).get("strategy")
    if isinstance(strategy, dict) and "Fixed" in strategy:
        yield (
            f"tokenizer.json pads every text to {strategy['Fixed']} tokens, which minibert and sentence-transformers "
            "override: a runtime that loads it as it is computes them all, and must mask them."
        )
    yield from _prefix_space(opened)
    said = _casing_of(content.get("normalizer"))
    if said != opened.casing:
        yield (
            f"tokenizer.json {said}, but minibert and sentence-transformers follow {opened.casing_source}: the "
            f"tokenizer {opened.casing}. A runtime that loads tokenizer.json as it is gets other tokens."
        )


def _prefix_space(opened: OpenedRepo) -> Iterator[str]:
    """Yield the difference of a runtime that takes the space before a text from tokenizer.json."""
    said = opened.tokenizer_files.json.get("pre_tokenizer")
    own = opened.tokenizer.backend.pre_tokenizer
    if isinstance(own, pre_tokenizers.ByteLevel) and isinstance(said, dict):
        steps = _steps(said, "pretokenizers")
        of_file = any(step.get("add_prefix_space") is True for step in steps if step.get("type") == "ByteLevel")
        if of_file != own.add_prefix_space:
            yield (
                f"tokenizer.json {'adds a' if of_file else 'adds no'} space before a text, but minibert and "
                "sentence-transformers follow add_prefix_space in tokenizer_config.json, which is false by default: a "
                "runtime that loads tokenizer.json as it is gets other tokens."
            )


def _steps(part: Any, of_sequence: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of tokenizer.json, also of nested sequences. What is no object is left out."""
    if isinstance(part, dict):
        yield part
        inner = part.get(of_sequence)
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step, of_sequence)


def _casing_of(normalizer: Any) -> Casing:
    """Return the casing that the normalizer in a tokenizer.json defines."""
    lower_cases = strips_accents = False
    for step in _steps(normalizer, "normalizers"):
        lower = step.get("type") == "Lowercase" or step.get("lowercase") is True
        strips = step.get("strip_accents")
        lower_cases |= lower
        # In a BertNormalizer, null means the same as for case.
        strips_accents |= step.get("type") == "StripAccents" or bool(lower if strips is None else strips)
    return Casing(lower_cases, strips_accents)


def _prompts(opened: OpenedRepo) -> Iterator[str]:
    prompts, default = opened.repo.prompts, opened.repo.default_prompt_name
    if default is not None and opened.prompts[default]:
        yield (
            f"encode puts the default prompt {opened.prompts[default]!r} before every text: runtimes that do not read "
            "config_sentence_transformers.json leave it out."
        )
    passage = next((name for name in ("passage", "corpus") if prompts.get(name)), None)
    if passage is not None and "document" not in prompts:
        yield (
            f'There is a prompt "{passage}" but no prompt "document": encode_document takes the empty "document" '
            f"prompt that every model has, here and in sentence-transformers. Ask for prompt_name={passage!r}."
        )


def _weights(opened: OpenedRepo) -> Iterator[str]:
    if ".bin" in find_weights(opened.repo.transformer_folder).suffixes:
        yield (
            "The weights are a pickle of PyTorch's only: runtimes without PyTorch cannot read them. `minibert convert` "
            "writes safetensors."
        )
