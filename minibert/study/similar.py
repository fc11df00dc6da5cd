"""Why two texts are similar: the shares of words, tokens, heads and layers in the similarity of two vectors."""

import functools
import itertools
import operator
from collections.abc import Callable

import numpy as np

from minibert.model import Tap, embed
from minibert.similarity import SIMILARITY
from minibert.study.reference import Reference
from minibert.study.traces import Trace
from minibert.typing import Array, Float, Int

__all__ = ["Similarity"]

#: The first stretches of the way from a blank text to a text. Most of the bends are in the first half.
_STRETCHES = (0.0, 0.25, 0.5, 1.0)
#: Number of points of each stretch, and the length of the shortest stretch.
_POINTS, _SHORTEST = 6, 1 / 512
#: About the number of forward passes that ``words`` needs for each token; what a token costs in a layer besides matrix
#: products, in multiplications; and the most multiplications in all passes for which it does not take long. Measured on
#: two cores: 18 s for two texts of 102 tokens with the built-in model, 10 s for two of 30 with all-MiniLM-L6-v2.
_PASSES, _BESIDES, _QUICK = 22, 1.2e6, 2e12
#: A derivative is a difference over this distance. The rounding error in float64 is about 1e-16 / _STEP.
_STEP = 1e-6
#: With less, a smaller error of the integral would disappear in that of the derivatives.
_LEAST_TOLERANCE = 1e-5


class Similarity:
    """Why two texts are similar. Each part is computed when it is first used.

    Every share is a part of ``score``. A positive share pulls the texts together, a negative one apart.

    Attributes:
        a: The trace of the first text, with ``S_a`` tokens.
        b: The trace of the second text, with ``S_b`` tokens.
        function: The similarity function: ``"cosine"`` or ``"dot"``.
        score: The similarity of the two vectors, in float64.
        tolerance: The error of each text's sum that ``words`` may have, in lengths of the text's vector.
    """

    def __init__(self, a: Trace, b: Trace, function: str = "cosine", tolerance: float = 0.01) -> None:
        if function not in {"cosine", "dot"}:
            raise ValueError(
                'explain needs a product of vectors: similarity_fn_name must be "cosine" or "dot"; it is '
                f'{function!r}. Set encoder.similarity_fn_name = "cosine" to see why the directions agree.'
            )
        if not (isinstance(tolerance, int | float | np.floating) and tolerance >= _LEAST_TOLERANCE):
            raise ValueError(f"tolerance must be a number of at least {_LEAST_TOLERANCE}; it is {tolerance!r}.")
        for trace in (a, b):
            if trace.edited:
                raise ValueError(
                    f"explain computes both texts again, without edits; the trace of {trace.text!r} has edits."
                )
        if a.model.bert is not b.model.bert or a.model.truncate_dim != b.model.truncate_dim:
            raise ValueError("explain compares two texts by one encoder with the same settings; these traces have two.")
        self.a, self.b, self.function, self.tolerance = a, b, function, tolerance
        self.score = self._score(a.vector, b.vector)
        if not np.isfinite(self.score):
            raise ValueError(
                f"the similarity must be a finite number; it is {self.score}. Has a text no token to pool?"
            )

    # ---------------------------------------------------------------- words

    @property
    def words(self) -> Float[Array, "S_a S_b"]:
        """The share of each pair of words: ``words.sum() + rest + error == score``. Special tokens have no share.

        Approximate, by integrated Jacobians (Möller, Nikolaev and Padó 2023, https://arxiv.org/abs/2310.05703). The
        words of each text are faded in, from [MASK] to what they are, in ``embeddings.x``. Special tokens, prompts and
        positions stay. What each word adds to the vector on the way is the integral of a derivative. The derivative is
        the difference of two forward passes in float64.

        A blank text has a vector, too, and its direction is no merit of a word. So the directions of both blank vectors
        are set aside: ``rest`` is the product in these directions.
        """
        return self._words[0]

    @property
    def words_are_quick(self) -> bool:
        """Whether ``words`` takes at most about half a minute. Its time grows with the model and the tokens squared.

        This estimate allows two texts of 127 tokens each with the built-in model, of 50 with all-MiniLM-L6-v2, and of
        21 with BERT-base. ``without_token`` takes less time.
        """
        config = self.a.model.bert.config
        layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size + _BESIDES
        passes = _PASSES * sum(len(trace.ids) ** 2 for trace in (self.a, self.b))
        return passes * layer * config.num_hidden_layers <= _QUICK

    @property
    def rest(self) -> float:
        """The part of the score in the directions of the texts without their words."""
        return self._words[1]

    @property
    def error(self) -> float:
        """What ``words.sum() + rest`` misses: ``score - words.sum() - rest``."""
        return self.score - float(self.words.sum()) - self.rest

    @functools.cached_property
    def _words(self) -> tuple[Array, float]:
        (added_a, blank_a, full_a), (added_b, blank_b, full_b) = (self._added(trace) for trace in (self.a, self.b))
        aside = _directions(np.stack([blank_a, blank_b], axis=1))
        length = self._length(full_a, full_b)
        pairs = added_a @ added_b.T - (added_a @ aside) @ (added_b @ aside).T
        return pairs / length, float((full_a @ aside) @ (full_b @ aside) / length)

    def _added(self, trace: Trace) -> tuple[Array, Array, Array]:
        """Return what each token adds to a text's vector, ``(S, D)``; the vector of the blank text; the text's own."""
        # For cosines, the vectors before Normalize: their directions are the same, and the way to them is smoother.
        model, ids = trace.model.unscaled() if self.function == "cosine" else trace.model, trace.ids
        blank = np.where(trace.fixed, ids, model.tokenizer.blank_id)
        start, end = (_embedded(model, row) for row in (blank, ids))
        faded = np.flatnonzero((start != end).any(axis=1))

        def vectors(places: Array, tokens: Array) -> Array:
            """Return the vector at each place of the way; where a token is not -1, with that token a step further."""

            def tap_of(part: slice) -> Tap:
                which = tokens[part]
                x = start + places[part, None, None] * (end - start)
                moved = np.flatnonzero(which >= 0)
                x[moved, which[moved]] += _STEP * (end - start)[which[moved]]
                return lambda name, value: x if name == "embeddings.x" else value

            return model.vectors(np.broadcast_to(ids, (len(places), len(ids))), trace.prompt_length, tap_of)

        first, last = vectors(np.array([0.0, 1.0]), np.array([-1, -1]))
        added = np.zeros((len(ids), len(last)))
        if len(faded):
            added[faded] = integrate(vectors, faded, self.tolerance * float(np.linalg.norm(last)))
        return added, first, last

    # ---------------------------------------------------------------- token vectors

    @property
    def vectors(self) -> Float[Array, "S_a S_b"] | None:
        """The share of each pair of the last layer's token vectors: their sum is the score, exactly.

        A product of sums is the sum of products. But each of these vectors already has something of its whole text.
        None if the vector of a text is no sum of its token vectors: :attr:`why_no_vectors` says why.
        """
        if self.why_no_vectors is not None:
            return None
        shares = []
        for trace in (self.a, self.b):
            x = trace.layers[-1].x
            weights = trace.model.pooling_weights(x, trace.ids, trace.prompt_length)  # (modes, S, H)
            shares.append(np.concatenate(list(weights * x), axis=1)[:, : trace.model.truncate_dim])
        of_a, of_b = shares
        return of_a @ of_b.T / self._length(of_a.sum(axis=0), of_b.sum(axis=0))

    @property
    def why_no_vectors(self) -> str | None:
        """Why :attr:`vectors` is None, or None if it is not."""
        return self.a.model.why_not_linear()

    # ---------------------------------------------------------------- what happens without a part

    @functools.cached_property
    def without_token(self) -> tuple[Float[Array, "S_a"], Float[Array, "S_b"]]:
        """How much the score falls without each token of each text. A fact, not a share; 0 for :attr:`Trace.fixed`.

        The model reads the text again without the token. A negative number means that the score rises.
        """
        return self._without_token(self.a, self.b), self._without_token(self.b, self.a)

    def _without_token(self, trace: Trace, other: Trace) -> Array:
        falls, own = np.zeros(len(trace.ids)), np.flatnonzero(~trace.fixed)
        if not len(own):
            return falls
        fewer = np.stack([np.delete(trace.ids, i) for i in own])
        vectors = trace.model.vectors(fewer, trace.prompt_length)
        falls[own] = [self.score - self._score(vector, other.vector) for vector in vectors]
        return falls

    @functools.cached_property
    def without_head(self) -> Float[Array, "L h"]:
        """How much the score falls with each head set to 0 in both texts. A fact, not a share."""
        config = self.a.model.bert.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads

        def tap_of(part: slice) -> Tap:
            numbers = range(layers * heads)[part]

            def tap(name: str, value: Array) -> Array:
                if name.endswith(".heads"):
                    layer = int(name.split(".")[1])
                    for row, number in enumerate(numbers):
                        if number // heads == layer:
                            value[row, number % heads] = 0
                return value

            return tap

        each = [
            trace.model.vectors(np.tile(trace.ids, (layers * heads, 1)), trace.prompt_length, tap_of)
            for trace in (self.a, self.b)
        ]
        falls = [self.score - self._score(of_a, of_b) for of_a, of_b in zip(*each, strict=True)]
        return np.reshape(falls, (layers, heads))

    @functools.cached_property
    def by_layer(self) -> Float[Array, "stages"] | None:
        """The cosine of the pooled token vectors after the embeddings and each layer; None without one Pooling.

        Other modules and ``truncate_dim`` are left out. With them, the last number is not the score.
        """
        if self.a.model.pooling is None:
            return None
        pooled = [
            [trace.model.pooled(part.x, trace.ids, trace.prompt_length) for part in (trace.embeddings, *trace.layers)]
            for trace in (self.a, self.b)
        ]
        return np.array([_cosine(of_a, of_b) for of_a, of_b in zip(*pooled, strict=True)])

    # ---------------------------------------------------------------- scores

    def _length(self, a: Array, b: Array) -> float:
        """Return what the product of two vectors is divided by to get the score.

        The vectors have the directions of the traces' vectors. Normalize may have changed their lengths.
        """
        length = np.linalg.norm(a) * np.linalg.norm(b)
        if self.function == "dot":
            length /= np.linalg.norm(self.a.vector) * np.linalg.norm(self.b.vector) or 1.0
        return float(length) or 1.0  # a vector of zeros has the score 0, and so have all its shares

    def _score(self, a: Array, b: Array) -> float:
        return float(SIMILARITY[self.function](a[None], b[None])[0, 0])

    def __repr__(self) -> str:
        vectors = "exact" if self.why_no_vectors is None else f"None: {self.why_no_vectors}"
        return "\n".join([
            f"Similarity of {self.a.text!r} and {self.b.text!r}",
            f"score          {self.score:.6f}, {self.function}",
            "words          approximate: error says by how much the sum misses the score",
            f"vectors        {vectors}",
            "without_token  exact: the score is computed again",
            "without_head   exact: the score is computed again",
            "by_layer       exact: of the pooled token vectors",
        ])  # fmt: skip


def integrate(vectors: Callable[[Array, Array], Array], tokens: Int[Array, "W"], allowed: float) -> Float[Array, "W D"]:
    """Return what each token adds to a vector on the straight way from the blank text to the text.

    Each stretch of the way is integrated with the points of Gauss and Legendre. Over all tokens, the sum is known: it
    is the difference of the vectors at the ends of the stretch. So the error of each stretch is known, too. The
    stretches with the largest errors are halved until all errors together are at most ``allowed``.

    Args:
        vectors: Takes places from 0 to 1 and tokens. It returns the vector at each place, with that token a step
            further on its way; for token -1, with no token further.
        tokens: The tokens that change on the way.
        allowed: The allowed sum of the lengths of the errors.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    each = np.array([-1, *tokens])
    todo = list(itertools.pairwise(_STRETCHES))
    done: list[tuple[float, tuple[float, float], Array]] = []
    while todo:
        ends = np.array(todo)  # (n, 2)
        widths = ends[:, 1] - ends[:, 0]
        places = ends[:, :1] + widths[:, None] * (nodes + 1) / 2  # (n, points)
        at = vectors(
            np.concatenate([ends.ravel(), np.repeat(places, len(each))]),
            np.concatenate([np.full(ends.size, -1), np.tile(each, places.size)]),
        )
        before, after = at[: ends.size : 2], at[1 : ends.size : 2]  # (n, D)
        points = at[ends.size :].reshape(*places.shape, len(each), -1)
        slopes = (points[:, :, 1:] - points[:, :, :1]) / _STEP  # (n, points, W, D)
        added = np.einsum("p,npwd->nwd", weights, slopes) * widths[:, None, None] / 2
        errors = np.linalg.norm(added.sum(axis=1) - (after - before), axis=1)
        done = sorted([*done, *zip(errors.tolist(), todo, added, strict=True)], key=operator.itemgetter(0))
        todo = []
        if sum(error for error, _, _ in done) > allowed:
            while done and sum(error for error, _, _ in done) > allowed / 2:  # the halves will have errors, too
                _, (start, end), _ = done[-1]
                if end - start <= _SHORTEST:
                    break
                done.pop()
                todo += [(start, (start + end) / 2), ((start + end) / 2, end)]
    total: Array = np.sum([added for _, _, added in done], axis=0)
    return total


def _directions(vectors: Float[Array, "D n"]) -> Float[Array, "D r"]:
    """Return orthogonal directions of length 1 in which all the vectors lie, as columns: one for each that is new.

    Texts with equally many tokens have the same blank text. A second direction would then be rounding error.
    """
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    return left[:, sizes > 1e-9 * sizes[0]]


def _embedded(model: Reference, ids: Int[Array, "S"]) -> Float[Array, "S H"]:
    """Return ``embeddings.x`` of a text."""
    return embed(model.bert.params.embeddings, model.bert.config, ids[None], np.zeros_like(ids)[None])[0]


def _cosine(a: Array, b: Array) -> float:
    return float(SIMILARITY["cosine"](a[None], b[None])[0, 0])
