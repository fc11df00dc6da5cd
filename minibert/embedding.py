"""From texts to vectors: what a call of ``encode`` computes."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from minibert import ops
from minibert.engine.batches import Batch, Limits, ahead, cut, run, work_within_memory
from minibert.engine.devices import Engine
from minibert.engine.fused import Fused
from minibert.engine.threads import blas_threads
from minibert.errors import TruncationError
from minibert.modules.kinds import Features
from minibert.pipeline import Pipeline
from minibert.token_ids import TokenIds
from minibert.typing import Array, Int

OutputValue = Literal["sentence_embedding", "token_embeddings"] | None

#: Tokens of a text for which the products of its attention are too small for OpenBLAS to use threads: alone, they have
#: threads for the products with the weights only, and of those it was tried that the bits are the same.
_SHORT_TEXT = 40
#: Texts that are tokenized in one call, where the ids of all texts are needed before anything is computed.
_HELD_AT_ONCE = 1024


class Request(NamedTuple):
    """What a call asks of each text; see :meth:`minibert.SentenceEncoder.encode`.

    Attributes:
        prompt: The text that goes before each.
        output_value: As there.
        truncate_dim: As there.
        normalize: Whether vectors are scaled to length 1.
        on_device: Whether vectors stay where they are computed.
    """

    prompt: str
    output_value: OutputValue
    truncate_dim: int | None
    normalize: bool
    on_device: bool = False


@dataclasses.dataclass
class TruncationCount:
    """How many texts there were in a call so far, how many were too long, and how long the longest was."""

    limit: int
    texts: int = 0
    cut: int = 0
    longest: int = 0

    def add(self, lengths: Int[Array, "texts"]) -> None:
        """Count texts of so many tokens."""
        self.texts += len(lengths)
        self.cut += int(np.count_nonzero(lengths > self.limit))
        self.longest = max(self.longest, int(lengths.max(initial=0)))

    def refuse(self, lengths: Int[Array, "texts"]) -> None:
        """Raise TruncationError if one of these texts, the next ones, is too long."""
        cut = np.flatnonzero(lengths > self.limit)
        if len(cut):
            raise TruncationError(
                f"every text must have at most max_seq_length = {self.limit} tokens; item {self.texts + cut[0]} has "
                f"{lengths[cut[0]]}{f', and {len(cut) - 1} more are too long' if len(cut) > 1 else ''}. Split it, or "
                'allow the cut with on_truncate="warn" or "ignore".'
            )


class Job(NamedTuple):
    """The work of a call.

    Attributes:
        pipeline: The model.
        engine: What computes.
        request: What is asked for.
        limits: How large batches may be; a run may lower them.
        truncation: Texts are cut to its limit, and counted there.
        refuse_truncation: Whether a text that is too long is an error, before anything is computed.
        progress: Is called with a number of texts that are done.
    """

    pipeline: Pipeline
    engine: Engine
    request: Request
    limits: Limits
    truncation: TruncationCount
    refuse_truncation: bool
    progress: Callable[[int], object]

    def run(self, texts: list[str]) -> Any:
        """Return the vectors of ``texts``, ``(N, D)``, or a list of what else is requested. Equal texts are one."""
        unique = list(dict.fromkeys(texts))
        which: slice | Int[Array, "texts"] = slice(None)  # of the unique ones, for each text
        if len(unique) < len(texts):
            numbers = dict(zip(unique, range(len(unique)), strict=True))
            which = np.fromiter(map(numbers.__getitem__, texts), np.intp, len(texts))
        lengths = np.zeros(len(unique), np.intp)
        tokenizer, limit = self.pipeline.tokenizer, self.truncation.limit

        def encode(rows: Int[Array, "n"]) -> list[Any]:
            encodings = tokenizer.encode([self.request.prompt + unique[i] for i in rows.tolist()])
            lengths[rows] = tokenizer.lengths(encodings)
            return encodings

        def tokenize(rows: Int[Array, "n"]) -> tuple[Int[Array, "n"], list[Any]]:
            encodings = encode(rows)
            return tokenizer.cut_lengths(lengths[rows], limit), encodings

        def ids_of(encodings: list[Any]) -> TokenIds:
            return tokenizer.ids(encodings, limit)

        if self.refuse_truncation:
            pieces = (np.arange(len(unique))[start:][:_HELD_AT_ONCE] for start in range(0, len(unique), _HELD_AT_ONCE))
            with contextlib.closing(ahead(encode, pieces)) as encoded:
                held = TokenIds.joined(map(ids_of, encoded))
            self.truncation.refuse(lengths[which])
            outputs = self._compute(unique, lambda rows: (held.lengths[rows], rows.tolist()), held.take)
        else:
            outputs = self._compute(unique, tokenize, ids_of)
        self.truncation.add(lengths[which])
        self.progress(len(texts) - len(unique))
        if isinstance(which, slice):
            return outputs
        if self.request.output_value == "sentence_embedding":
            return self.engine.spread(outputs, which) if self.request.on_device else outputs[which]
        first = {i: row for row, i in reversed(list(enumerate(which.tolist())))}  # its equals get copies of its arrays
        return [outputs[i] if first[i] == row else copy.deepcopy(outputs[i]) for row, i in enumerate(which.tolist())]

    def _compute(
        self,
        texts: list[str],
        tokenize: Callable[[Int[Array, "n"]], tuple[Int[Array, "n"], list[Any]]],
        ids_of: Callable[[list[Any]], TokenIds],
    ) -> Any:
        """Return what is requested of ``texts``, which are all different: an array of vectors, or a list.

        Args:
            texts: The texts.
            tokenize: As :func:`minibert.engine.batches.cut` takes it.
            ids_of: Makes the ids of what ``tokenize`` returned for some texts.
        """
        pipeline, request = self.pipeline, self.request
        prompt_length = 0
        if request.prompt:
            prompt_length = pipeline.tokenizer.prompt_length(request.prompt, self.truncation.limit)
        shape = len(texts), pipeline.width(request.truncate_dim)
        vectors = self.engine.empty(*shape) if request.on_device else np.empty(shape, self.engine.dtype)
        outputs: list[Any] = [None] * len(texts)
        wants_vectors = request.output_value == "sentence_embedding"
        features_of = pipeline.sentence_features if wants_vectors else pipeline.token_features

        def work(batch: Batch, fused: Fused) -> None:
            start = 0
            for features in features_of(ids_of(batch.tokenized), fused, prompt_length):
                group = features["sentence_embedding"][..., : request.truncate_dim]
                rows = batch.rows[start : start + len(group)]
                start += len(group)
                if wants_vectors:
                    group = ops.l2_normalize(group) if request.normalize else group
                    vectors[rows] = group if request.on_device else fused.to_host(group)
                else:
                    features["sentence_embedding"] = group
                    for position, i in enumerate(rows.tolist()):
                        outputs[i] = _output(features, request.output_value, position)
            self.progress(len(batch.rows))

        if len(texts) == 1:
            row = np.zeros(1, np.intp)
            batch = Batch(row, *tokenize(row))
            with self.engine.worker(blas_threads=self._blas_may_use_threads(batch.tokens)) as fused:
                work_within_memory(batch, work, self.limits, fused)
        elif texts:
            limits = dataclasses.replace(self.limits, threads=min(self.limits.threads, len(texts)))
            batches = cut(texts, tokenize, limits)
            try:
                run(batches, work, limits, self.engine.worker)
            finally:
                with contextlib.suppress(ValueError):  # after Ctrl-C while run ended: a thread is still in there
                    batches.close()
        return vectors if wants_vectors else outputs

    def _blas_may_use_threads(self, tokens: int) -> bool:
        """Return whether BLAS, left to itself, gives a text the same bits on no more threads than allowed."""
        return tokens <= _SHORT_TEXT and self.pipeline.row_rule.threads and blas_threads() <= self.limits.threads


def _output(features: Features, output_value: OutputValue, position: int) -> Any:
    """Return what ``output_value`` asks for, of the text at ``position`` in its group."""
    if output_value is not None:
        return features[output_value][position]
    rows = len(features["input_ids"])
    return {
        name: value[position] if isinstance(value, np.ndarray) and len(value) == rows else value
        for name, value in features.items()
    }
