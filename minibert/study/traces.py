"""Traces: every result on the way from a text to its vector, by name; and what each part of the model contributed."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from minibert.study.names import in_words, line_of
from minibert.study.reference import Reference
from minibert.typing import Array, Bool, Float, Int

__all__ = ["Edit", "Part", "Trace", "without"]

#: It takes a result, without the dimension of texts, and returns the array to continue with, of the same shape.
Edit = Callable[[Array], Array]


def without(*heads: int) -> Edit:
    """Return an edit that sets heads to 0: of ``heads``, or of ``Q``, ``K``, ``V``, ``scores`` or ``weights``.

    Heads count from 0 in each layer. To switch a head off, edit ``layers.3.heads``.

    Example:
        >>> from minibert import SentenceEncoder, study
        >>> trace = SentenceEncoder().trace("A sentence.", edit={"layers.0.heads": study.without(1)})
        >>> trace.layers[0].heads.any(axis=(1, 2))  # of the two heads, the second is 0
        array([ True, False])
    """

    def edit(value: Array) -> Array:
        if value.ndim != 3:
            raise ValueError(f"study.without edits a result with heads, (h, S, d) or (h, S, S); this is {value.shape}.")
        if wrong := [head for head in heads if head not in range(len(value))]:
            raise ValueError(f"study.without: a head must be from 0 to {len(value) - 1}; it is {wrong[0]!r}.")
        value[list(heads)] = 0
        return value

    return edit


class Part:
    """The results of one part of the model, as attributes: ``trace.layers[0].weights``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __dir__(self) -> list[str]:
        return [name for name in vars(self) if not name.startswith("_")]

    def __getattr__(self, name: str) -> Any:  # only called for what is not there
        if name.startswith("_"):  # copy and pickle ask for such names before there is a `_name`
            raise AttributeError(name)
        there = f"there are {', '.join(dir(self))}" if dir(self) else f"nothing of {self._name} was kept"
        raise AttributeError(f"{self._name}.{name} is not a result, or was not kept; {there}.")

    def __repr__(self) -> str:
        return f"{self._name}: {', '.join(dir(self))}"


class Trace(Mapping[str, Array]):
    """The results on the way from a text to its vector: read-only arrays of float64, without the dimension of texts.

    As a mapping, it has the kept results by name, in the order of computing: ``trace["layers.0.weights"]``. The same
    array is ``trace.layers[0].weights``. ``repr(trace)`` lists names, shapes, and lines of ``model.py``. A pickle of a
    trace has all parameters of the model, too.

        S  tokens    h  heads    d  head size    H  hidden size    I  intermediate size    D  dimensions of a vector

    Attributes:
        text: The text.
        prompt: The prompt before it.
        tokens: The tokens, as the vocabulary spells them, with special tokens.
        ids: Their ids, ``(S,)``.
        spans: The start and the end of each token in ``prompt + text``; ``(0, 0)`` for a special token.
        special: True at the special tokens around the text, ``(S,)``.
        fixed: True at the special tokens and at the tokens of the prompt, ``(S,)``.
        prompt_length: Number of tokens of the prompt at the start, with the special tokens before it.
        length: Number of tokens before truncation.
        embeddings: ``words``, ``types``, ``positions`` and ``x``, ``(S, H)`` each.
        layers: For each layer ``Q``, ``K``, ``V``, ``heads`` ``(h, S, d)``; ``scores``, ``weights`` ``(h, S, S)``;
            ``multihead``, ``attended``, ``outer``, ``x`` ``(S, H)``; ``inner`` ``(S, I)``.
        modules: For each module of ``modules.json`` the features that it changed, such as ``sentence_embedding``
            ``(D,)``. Number 0 is the transformer, so it has none.
        vector: What ``encode`` returns, ``(D,)``.
        edited: Whether the trace has edits.
        model: The parameters and the modules that computed it.
    """

    def __init__(self, model: Reference, text: str, prompt: str, max_length: int) -> None:
        tokenizer, whole = model.tokenizer, model.tokenizer.backend.encode(prompt + text, add_special_tokens=False)
        self.model, self.text, self.prompt = model, text, prompt
        self.length = len(whole) + tokenizer.special_tokens  # before truncation
        self.ids: Int[Array, "S"] = tokenizer.ids([whole], max_length).flat.astype(np.int64)
        self.tokens = [tokenizer.backend.id_to_token(number) or "" for number in self.ids.tolist()]
        own = len(self.ids) - tokenizer.special_tokens
        kept = slice(len(whole) - own, None) if tokenizer.truncation_side == "left" else slice(own)
        before, after = ([(0, 0)] * len(ids) for ids in (tokenizer.prefix, tokenizer.suffix))
        self.spans: list[tuple[int, int]] = [*before, *whole.offsets[kept], *after]
        self.special: Bool[Array, "S"] = np.ones(len(self.ids), bool)
        self.special[len(before) : len(self.ids) - len(after)] = False
        self.prompt_length = tokenizer.prompt_length(prompt, max_length) if prompt else 0
        self.fixed: Bool[Array, "S"] = self.special | (np.arange(len(self.ids)) < self.prompt_length)
        config = model.bert.config
        self.embeddings = Part("embeddings")
        self.layers = tuple(Part(f"layers.{number}") for number in range(config.num_hidden_layers))
        self.modules = tuple(Part(f"modules.{number}") for number in range(len(model.modules) + 1))
        self.vector: Float[Array, "D"] = np.empty(0)
        self.edited = False
        self._kept: dict[str, Array] = {}

    @classmethod
    def of(
        cls,
        model: Reference,
        text: str,
        prompt: str,
        max_length: int,
        keep: Sequence[str],
        edits: Mapping[str, Edit],
    ) -> Self:
        """Return the trace of a text. :meth:`minibert.SentenceEncoder.trace` describes the arguments and errors."""
        if wrong := [(name, type(edit).__name__) for name, edit in edits.items() if not callable(edit)]:
            name, found = wrong[0]
            raise TypeError(
                f"the edit of {name} must be a function of an array, such as lambda x: 2 * x; it is of type {found}."
            )
        trace = cls(model, text, prompt, max_length)
        unused, names = {*keep, *edits}, list[str]()

        def tap(name: str, value: Array) -> Array:
            names.append(name)
            for pattern, function in edits.items():
                if fnmatch.fnmatchcase(name, pattern):
                    unused.discard(pattern)
                    value = _edited(name, value, function)
            for pattern in keep:
                if fnmatch.fnmatchcase(name, pattern):
                    unused.discard(pattern)
                    trace._keep(name, value)
            return value

        trace.edited = bool(edits)
        features = model.features(trace.ids[None], trace.prompt_length, tap)
        _require_used(unused, names)
        trace.vector = _read_only(features["sentence_embedding"][0])
        return trace

    def _keep(self, name: str, value: Array) -> None:
        part, *number, last = name.split(".")
        owner = getattr(self, part)
        self._kept[name] = _read_only(value[0, ...])  # always an array, also for a single number
        setattr(owner[int(number[0])] if number else owner, last, self._kept[name])

    __eq__, __hash__ = object.__eq__, object.__hash__  # arrays have no single truth value to compare mappings by

    def __getitem__(self, name: str) -> Array:
        if name not in self._kept:
            raise KeyError(f"{name!r} is not a result, or was not kept. {_near(name, self._kept)}")
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        rows = []
        for name, value in self.items():
            line = line_of(name)
            rows.append((name, in_words(name, value.shape), "" if line is None else f"model.py:{line}"))
        first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
        lines = [f"{name:{first}}  {shape:{second}}  {line}".rstrip() for name, shape, line in rows]
        return "\n".join([f"Trace of {self.text!r}, {len(self.tokens)} tokens", *lines])

    # ---------------------------------------------------------------- why the vector is what it is

    @property
    def pooled(self) -> Float[Array, "D"]:
        """What the Pooling module returns, ``(D,)``, before the modules after it."""
        pooling = self.model.pooling
        if pooling is None:
            raise ValueError(f"there is no pooled vector: {self.model.why_not_pooled()}.")
        pooled: Array = self.modules[1 + self.model.modules.index(pooling)].sentence_embedding
        return pooled

    def value_norms(self, layer: int) -> Float[Array, "h S"]:
        """Return the length of what each token passes on in each head of a layer: of V_j W_O.

        Times ``weights``, it is how much of token j arrives at each token. Kobayashi et al. 2020,
        https://arxiv.org/abs/2004.10102.
        """
        return np.linalg.norm(self._through_output(layer, self.layers[layer].V), axis=-1)

    def contributions(self) -> dict[str, Float[Array, "S H"]]:
        """Return what each part of the model added to the last layer's token vectors. The arrays sum to ``x``, exactly.

        The parts are ``words``, ``types``, ``positions``, each head, such as ``layers.0.heads.1``, each feed-forward
        layer, such as ``layers.0.outer``, and ``biases``: those of W_O and of the layer normalizations. The other
        biases are in the parts that they belong to. Each layer normalization is taken as it was in this text: a shift,
        a division and a scale. With these, it is linear, and what a head wrote can be followed to the end. These are
        direct contributions: what a later layer made of a part counts as the later layer's.

        Raises:
            ValueError: The trace has edits.
            AttributeError: A result that this needs was not kept.
        """
        return dict(self._contributions())

    def shares(self) -> dict[str, Float[Array, "S"]]:
        """Return the share of each part, at each token, in the pooled vector. All shares together sum to 1, exactly.

        It is the part of :meth:`contributions`, pooled, along the pooled vector. A negative share points away from it.

        Raises:
            ValueError: The trace has edits, or the pooled vector is no sum of the last token vectors.
            AttributeError: A result that this needs was not kept.
        """
        if why := self.model.why_not_pooled():
            raise ValueError(f"the pooled vector is no sum of the last layer's token vectors: {why}.")
        x, pooled = self.layers[-1].x, self.pooled
        weights = self.model.pooling_weights(x, self.ids, self.prompt_length)  # (modes, S, H)
        along = np.einsum("msh,mh->sh", weights, (pooled / (pooled @ pooled)).reshape(len(weights), -1))
        return {name: (part * along).sum(axis=-1) for name, part in self._contributions()}

    def _contributions(self) -> Iterator[tuple[str, Array]]:
        if self.edited:
            raise ValueError("contributions are exact only without edits; this trace has edits.")
        params, eps = self.model.bert.params, self.model.bert.config.layer_norm_eps
        first, norms, biases = self.embeddings, [params.embeddings.norm], [np.zeros(1)]
        sums = [first.words + first.types + first.positions]
        x = first.x
        for layer, part in zip(params.layers, self.layers, strict=True):
            norms += [layer.attention.norm, layer.feed_forward.norm]
            sums += [x + part.multihead, part.attended + part.outer]
            biases += [layer.attention.output.bias, np.zeros(1)]
            x = part.x
        divisors = [np.sqrt(total.var(axis=-1, keepdims=True) + eps) for total in sums]  # (S, 1) each

        def normalized(part: Array, number: int) -> Array:
            return norms[number].weight * (part - part.mean(axis=-1, keepdims=True)) / divisors[number]

        def to_the_end(part: Array, start: int) -> Array:
            for number in range(start, len(norms)):
                part = normalized(part, number)
            return part

        yield "words", to_the_end(first.words, 0)
        yield "types", to_the_end(first.types, 0)
        yield "positions", to_the_end(first.positions, 0)
        for number, part in enumerate(self.layers):
            for head, written in enumerate(self._through_output(number, part.heads)):
                yield f"layers.{number}.heads.{head}", to_the_end(written, 2 * number + 1)
            yield f"layers.{number}.outer", to_the_end(part.outer, 2 * number + 2)
        constant = np.zeros_like(x)
        for number, (norm, bias) in enumerate(zip(norms, biases, strict=True)):
            constant = normalized(constant + bias, number) + norm.bias
        yield "biases", constant

    def _through_output(self, layer: int, heads: Float[Array, "h S d"]) -> Float[Array, "h S H"]:
        """Return what each head's vectors become in its own columns of W_O."""
        output = self.model.bert.params.layers[layer].attention.output.weight  # (H, H): out, in
        return heads @ output.T.reshape(len(heads), heads.shape[2], -1)


def _read_only(value: Array) -> Array:
    value = value.view()
    value.flags.writeable = False
    return value


def _edited(name: str, value: Array, function: Edit) -> Array:
    """Return a result after an edit. The function gets a copy: it may change it in place. What it returns is copied."""
    own = value[0, ...].copy()
    returned = function(own)
    try:
        new = np.array(returned)  # a copy: the caller may change the array later, but the trace must not change
    except ValueError:  # lists of different lengths
        new = np.array(None)
    if new.shape != own.shape or new.dtype.kind not in "biuf":
        found = f"{new.dtype} {new.shape}" if new.dtype != object else "None" if returned is None else "other objects"
        raise ValueError(f"the edit of {name} must return numbers of the shape {own.shape}; it returned {found}.")
    return new.astype(value.dtype, copy=False).reshape(value.shape)


def _require_used(unused: set[str], names: list[str]) -> None:
    if unused:
        name = min(unused)
        raise ValueError(f"no result has the name or pattern {name!r}. {_near(name, names)}")


def _near(name: str, names: Iterable[str]) -> str:
    """Return a sentence with the names that are most like ``name``."""
    names = list(names)
    near = difflib.get_close_matches(name, names, 4, 0.5)
    # "weights" alone is no name, but somebody who writes it means the weights of some layer.
    near = near or [other for other in names if other.endswith(f".{name}")][:4]
    if near:
        return f"Near names: {', '.join(near)}."
    return f"There are {len(names)} names, from {names[0]} to {names[-1]}." if names else "Nothing was kept."
