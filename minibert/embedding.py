"""From texts to vectors: what a call of ``encode`` computes."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from minibert import ops
from minibert.batches import Batch, Limits, cut, run, work_within_memory
from minibert.engines import Engine
from minibert.errors import TruncationError
from minibert.fused.operations import Fused
from minibert.modules import Features
from minibert.pipeline import Pipeline
from minibert.threads import blas_threads

OutputValue = Literal["sentence_embedding", "token_embeddings"] | None

#: Tokens of a text for which the products of its attention are too small for OpenBLAS to use threads: alone, they have
#: threads for the products with the weights only, and of those it was tried that the bits are the same.
_SHORT_TEXT = 40


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

    def add(self, lengths: Sequence[int]) -> None:
        """Count texts of so many tokens."""
        self.texts += len(lengths)
        self.cut += sum(length > self.limit for length in lengths)
        self.longest = max(self.longest, *lengths, 0)

    def refuse(self, lengths: Sequence[int]) -> None:
        """Raise TruncationError if one of these texts, the next ones, is too long."""
        cut = [i for i, length in enumerate(lengths) if length > self.limit]
        if cut:
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
        numbers: dict[str, int] = {}
        which = [numbers.setdefault(text, len(numbers)) for text in texts]
        unique = list(numbers)
        lengths = [0] * len(unique)

        def tokenize(indices: Sequence[int]) -> list[list[int]]:
            found = self.pipeline.tokenizer([self.request.prompt + unique[i] for i in indices], self.truncation.limit)
            for i, length in zip(indices, found.lengths, strict=True):
                lengths[i] = length
            return found.ids

        if self.refuse_truncation:
            ids = tokenize(range(len(unique)))
            self.truncation.refuse([lengths[i] for i in which])
            outputs = self._compute(unique, lambda indices: [ids[i] for i in indices])
        else:
            outputs = self._compute(unique, tokenize)
        self.truncation.add([lengths[i] for i in which])
        self.progress(len(texts) - len(unique))
        if len(unique) == len(texts):
            return outputs
        if self.request.output_value == "sentence_embedding":
            return self.engine.spread(outputs, which) if self.request.on_device else outputs[which]
        first = {i: row for row, i in reversed(list(enumerate(which)))}  # it gets the arrays, its equals get copies
        return [outputs[i] if first[i] == row else copy.deepcopy(outputs[i]) for row, i in enumerate(which)]

    def _compute(self, texts: list[str], tokenize: Callable[[Sequence[int]], list[list[int]]]) -> Any:
        """Return what is requested of ``texts``, which are all different: an array of vectors, or a list."""
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
            for features in features_of(batch.ids, fused, prompt_length):
                group = features["sentence_embedding"][..., : request.truncate_dim]
                rows = batch.rows[start : start + len(group)]
                start += len(group)
                if wants_vectors:
                    group = ops.l2_normalize(group) if request.normalize else group
                    vectors[rows] = group if request.on_device else fused.to_host(group)
                else:
                    features["sentence_embedding"] = group
                    for position, i in enumerate(rows):
                        outputs[i] = _output(features, request.output_value, position)
            self.progress(len(batch.rows))

        if len(texts) == 1:
            ids = tokenize([0])
            with self.engine.worker(blas_threads=self._blas_may_use_threads(len(ids[0]))) as fused:
                work_within_memory(Batch([0], ids), work, self.limits, fused)
        elif texts:
            limits = dataclasses.replace(self.limits, threads=min(self.limits.threads, len(texts)))
            run(cut(texts, tokenize, limits), work, limits, self.engine.worker)
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
