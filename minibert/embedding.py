"""From texts to vectors: the request of a call of ``encode``, and its computation."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from minibert import quantization
from minibert.engine.arithmetic import Arithmetic
from minibert.engine.batches import Batch, Limits, ahead, cut, run, work_within_memory
from minibert.engine.devices import Engine
from minibert.engine.fused import Fused
from minibert.engine.token_ids import TokenIds
from minibert.errors import TruncationError, VectorError
from minibert.inputs import at_least_one, require_choice, require_int
from minibert.modules.kinds import Features
from minibert.pipeline import Pipeline
from minibert.settings import Settings
from minibert.typing import Array, Int, Precision

OutputValue = Literal["sentence_embedding", "token_embeddings"] | None

#: Number of texts to tokenize in one call, if the ids of all texts are needed before the computation.
_HELD_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The request of a call of :meth:`minibert.SentenceEncoder.encode`. The constructor checks all values.

    Attributes:
        settings: The encoder's settings at the time of the call.
        prompt: The text before each input.
        output_value: As in ``encode``.
        precision: As in ``encode``.
        truncate_dim: As in ``encode``. None is replaced by the value in the settings.
        normalize: Whether vectors are scaled to length 1.
        batch_size: As in ``encode``.
        on_device: Whether sentence vectors stay on the device.

    Raises:
        ValueError: An attribute has an invalid value.
    """

    settings: Settings
    prompt: str
    output_value: OutputValue = "sentence_embedding"
    precision: Precision = "float32"
    truncate_dim: int | None = None
    normalize: bool = False
    batch_size: int | None = None
    on_device: bool = False

    def __post_init__(self) -> None:
        require_choice("output_value", self.output_value, ("sentence_embedding", "token_embeddings", None))
        require_choice("precision", self.precision, quantization.PRECISIONS)
        if self.output_value is None and self.precision != "float32":
            raise ValueError(
                f"precision must be 'float32' for output_value=None, which gives features of many kinds; it is "
                f"{self.precision!r}. Quantize what you need with minibert.quantize_embeddings."
            )
        truncate_dim, batch_size = self.truncate_dim, self.batch_size
        truncate_dim = self.settings.truncate_dim if truncate_dim is None else require_int("truncate_dim", truncate_dim)
        object.__setattr__(self, "truncate_dim", truncate_dim)
        object.__setattr__(self, "batch_size", None if batch_size is None else at_least_one("batch_size", batch_size))


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What a call of ``encode`` truncated.

    Attributes:
        count: Number of texts that were longer than the limit.
        longest: Number of tokens of the longest text before truncation, with special tokens.
        limit: ``max_seq_length`` at the time of the call.
        tokens: Number of tokens of all texts together after truncation, with special tokens.
    """

    count: int
    longest: int
    limit: int
    tokens: int = dataclasses.field(default=0, compare=False, repr=False)

    def including(self, lengths: Int[Array, "texts"]) -> Self:
        """Return the sum of this and of more texts with these token counts."""
        longest = int(lengths.max(initial=0))
        count = int(np.count_nonzero(lengths > self.limit)) if longest > self.limit else 0
        tokens = int(np.minimum(lengths, self.limit).sum())
        return type(self)(self.count + count, max(self.longest, longest), self.limit, self.tokens + tokens)


def embed(
    texts: list[str],
    request: Request,
    pipeline: Pipeline,
    engine: Engine,
    progress: Callable[[int], object],
    start: int = 0,
) -> tuple[Any, Int[Array, "texts"]]:
    """Return the requested outputs, and the token count of each text before truncation. Equal texts are computed once.

    Args:
        texts: The texts.
        request: The request.
        pipeline: The model.
        engine: The device.
        progress: A function that is called with a number of completed texts.
        start: The index of the first text, for messages.

    Returns:
        The vectors, ``(N, D)``, or a list of other outputs; and the lengths, ``(N,)``.

    Raises:
        TruncationError: A text is too long, and ``on_truncate`` is ``"error"``. Nothing was computed.
        VectorError: A vector has NaN or infinity.
    """
    unique = list(dict.fromkeys(texts))
    which: slice | Int[Array, "texts"] = slice(None)  # for each text, its index in unique
    if len(unique) < len(texts):
        numbers = dict(zip(unique, range(len(unique)), strict=True))
        which = np.fromiter(map(numbers.__getitem__, texts), np.intp, len(texts))
    lengths = np.zeros(len(unique), np.intp)
    tokenizer, limit = pipeline.tokenizer, request.settings.max_seq_length

    def encode(rows: Array) -> list[Any]:  # a subscript here would be evaluated in each call
        encodings = tokenizer.encode([request.prompt + unique[i] for i in rows.tolist()])
        lengths[rows] = tokenizer.lengths(encodings)
        return encodings

    def ids_of(encodings: list[Any]) -> TokenIds:
        return tokenizer.ids(encodings, limit)

    def tokenize(rows: Array) -> tuple[Array, list[Any]]:
        encodings = encode(rows)
        return tokenizer.cut_lengths(lengths[rows], limit), encodings

    def index_of(row: int) -> int:
        return start + texts.index(unique[row])

    source = _Source(unique, tokenize, ids_of, index_of)
    if request.settings.on_truncate == "error":
        pieces = (np.arange(len(unique))[first:][:_HELD_AT_ONCE] for first in range(0, len(unique), _HELD_AT_ONCE))
        with contextlib.closing(ahead(encode, pieces)) as encoded:
            held = TokenIds.joined(map(ids_of, encoded))
        refuse_truncation(lengths[which], limit, start)
        source = _Source.of_ids(unique, held, index_of)
    prompt_length = tokenizer.prompt_length(request.prompt, limit) if request.prompt else 0
    outputs = _compute(source, request, pipeline, engine, progress, prompt_length)
    progress(len(texts) - len(unique))
    if isinstance(which, slice):
        return outputs, lengths
    if request.output_value == "sentence_embedding":
        return engine.spread(outputs, which) if request.on_device else outputs[which], lengths[which]
    first = {i: row for row, i in reversed(list(enumerate(which.tolist())))}  # equal texts get copies
    each = [outputs[i] if first[i] == row else copy.deepcopy(outputs[i]) for row, i in enumerate(which.tolist())]
    return each, lengths[which]


def embed_ids(ids: TokenIds, request: Request, pipeline: Pipeline, engine: Engine, prompt_length: int = 0) -> Any:
    """Return the requested outputs of texts that are token ids already, with special tokens and the prompt.

    Args:
        ids: The ids of each text. They are not checked. No text may be longer than ``max_seq_length``.
        request: The request. Its prompt has no effect.
        pipeline: The model.
        engine: The device.
        prompt_length: Number of tokens of the prompt at the start of each text, with the special tokens before it.

    Raises:
        VectorError: A vector has NaN or infinity.
    """
    source = _Source.of_ids(list(ids), ids, lambda row: row)
    return _compute(source, request, pipeline, engine, lambda _: None, prompt_length)


class _Source(NamedTuple):
    """Unique texts and functions that give their tokens.

    Attributes:
        texts: The texts, or other objects whose lengths grow with the numbers of tokens.
        tokenize: The argument of :func:`minibert.engine.batches.cut`.
        ids_of: Converts the results of ``tokenize`` for some texts to ids.
        index_of: Returns the index of a text in the caller's list.
        tokens: Number of tokens of all texts, or None if it is not known before ``tokenize``.
    """

    texts: Sequence[Sized]
    tokenize: Callable[[Int[Array, "n"]], tuple[Int[Array, "n"], list[Any]]]
    ids_of: Callable[[list[Any]], TokenIds]
    index_of: Callable[[int], int]
    tokens: int | None = None

    @classmethod
    def of_ids(cls, texts: Sequence[Sized], ids: TokenIds, index_of: Callable[[int], int]) -> Self:
        """Return the source of texts whose ids are known."""
        return cls(texts, lambda rows: (ids.lengths[rows], rows.tolist()), ids.take, index_of, len(ids.flat))


def _compute(
    source: _Source,
    request: Request,
    pipeline: Pipeline,
    engine: Engine,
    progress: Callable[[int], object],
    prompt_length: int,
) -> Any:
    """Return the requested outputs of unique texts: an array of vectors, or a list."""
    texts, lengths = len(source.texts), np.zeros(len(source.texts), np.intp)
    results: Any = [None] * texts
    features_of, keep = pipeline.token_features, _keep_features
    arithmetic = engine.arithmetic
    if request.output_value == "sentence_embedding":
        features_of, keep = pipeline.sentence_features, _keep_vectors
        shape = texts, pipeline.width(request.truncate_dim)
        results = engine.empty(*shape) if request.on_device else np.empty(shape, engine.dtype)

    def require_finite(finite: Array, rows: Array) -> None:
        """Raise VectorError if a text is not finite. Skip texts with no pooled token: their maximum is -inf."""
        if not finite.all():
            not_pooled = 0 if request.settings.include_prompt else prompt_length
            for row in rows[~finite & (lengths[rows] > not_pooled)].tolist():
                raise _not_finite(source.index_of(row), engine.precision)

    def work(batch: Batch, fused: Fused) -> None:
        lengths[batch.rows] = batch.lengths
        start = 0
        for features in features_of(source.ids_of(batch.tokenized), fused, prompt_length):
            rows = batch.rows[start : start + len(features["sentence_embedding"])]
            start += len(rows)
            require_finite(keep(results, rows, features, request, fused, arithmetic), rows)
        progress(len(batch.rows))

    _in_batches(source, request, pipeline, engine, work)
    if request.on_device:  # check all vectors at once: each check waits for the GPU
        require_finite(engine.finite_rows(results), np.arange(texts))
    return results


def _keep_vectors(
    results: Any,
    rows: Int[Array, "n"],
    features: Features,
    request: Request,
    fused: Fused,
    arithmetic: Arithmetic,
) -> Array:
    """Store the vectors of some texts in the results. Return which are finite; vectors on the GPU count as finite."""
    vectors = features["sentence_embedding"][..., : request.truncate_dim]
    vectors = arithmetic.l2_normalize(vectors) if request.normalize else vectors
    if request.on_device:
        results[rows] = vectors
        return np.ones(len(rows), bool)
    results[rows] = vectors = fused.to_host(vectors)
    return np.asarray(np.isfinite(vectors).all(axis=1))


def _keep_features(
    results: list[Any],
    rows: Int[Array, "n"],
    features: Features,
    request: Request,
    fused: Fused,  # noqa: ARG001
    arithmetic: Arithmetic,  # noqa: ARG001
) -> Array:
    """Store the requested features of some texts in the results. Return which texts have finite features."""
    finite = np.isfinite(features["token_embeddings"]).all(axis=(1, 2))
    finite &= np.isfinite(features["sentence_embedding"]).all(axis=1)
    features["sentence_embedding"] = features["sentence_embedding"][..., : request.truncate_dim]
    for position, row in enumerate(rows.tolist()):
        results[row] = _output(features, request.output_value, position)
    return np.asarray(finite)


def _in_batches(
    source: _Source, request: Request, pipeline: Pipeline, engine: Engine, work: Callable[[Batch, Fused], None]
) -> None:
    """Cut texts into batches and call ``work`` on each batch. Use at most one thread per text.

    A text alone is computed by all threads together, if the engine can do that. So are several texts that are known to
    fit in one batch: to start threads for batches takes longer than such a batch.
    """

    def quietly(batch: Batch, fused: Fused) -> None:
        with np.errstate(all="ignore"):  # an overflow shows in the vectors
            work(batch, fused)

    settings, texts = request.settings, len(source.texts)
    threads = min(settings.num_threads, max(texts, 1))
    if source.tokens is not None:
        threads = min(threads, 1 + source.tokens // engine.efficient_tokens)  # there are no more batches
    limits = Limits(settings.max_batch_tokens, request.batch_size, threads, engine.efficient_tokens)
    few = source.tokens is not None and source.tokens <= settings.max_batch_tokens and request.batch_size is None
    if texts == 1 or (few and texts):
        rows = np.arange(texts)
        batch = Batch(rows, *source.tokenize(rows))
        inner = engine.threads_for(batch, pipeline.row_rule, settings.num_threads)
        if texts == 1 or inner > 1:
            with engine.worker(threads=inner) as fused:
                work_within_memory(batch, quietly, limits, fused)
            return
    if texts:
        batches = cut(source.texts, source.tokenize, limits)
        try:
            run(batches, quietly, limits, engine.worker)
        finally:
            with contextlib.suppress(ValueError):  # after Ctrl-C at the end of run, a thread still uses it
                batches.close()


def refuse_truncation(lengths: Int[Array, "texts"], limit: int, start: int) -> None:
    """Raise TruncationError if a text has more tokens than the limit. The index of the first text is ``start``."""
    cut = np.flatnonzero(lengths > limit)
    if len(cut):
        raise TruncationError(
            f"every text must have at most max_seq_length = {limit} tokens; item {start + cut[0]} has "
            f"{lengths[cut[0]]}{f', and {len(cut) - 1} more are too long' if len(cut) > 1 else ''}. Split it, or "
            'allow the cut with on_truncate="warn" or "ignore".'
        )


def _not_finite(index: int, precision: str) -> VectorError:
    """Return the error for a text whose vector has NaN or infinity."""
    remedy = "Check the weights: they may be damaged."
    if precision == "float16":
        remedy = 'Load the model with dtype="bfloat16" or "float32", which hold larger numbers.'
    elif precision != "float64":
        remedy += ' On a CPU, dtype="float64" holds larger numbers.'
    return VectorError(
        f"every vector must be finite; that of item {index} has NaN or infinity, because a number was too large for "
        f"{precision}. {remedy}"
    )


def _output(features: Features, output_value: OutputValue, position: int) -> Any:
    """Return the output ``output_value`` of the text at ``position`` in its group."""
    if output_value is not None:
        return features[output_value][position]
    rows = len(features["input_ids"])
    return {
        name: value[position] if isinstance(value, np.ndarray) and len(value) == rows else value
        for name, value in features.items()
    }
