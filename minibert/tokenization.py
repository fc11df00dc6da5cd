"""Tokenization: from texts to token ids, the same ids that transformers 5 gives.

The splitting itself is done by the ``tokenizers`` library; :mod:`minibert.files.tokenizer_files` sets it up.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from minibert.files.tokenizer_files import TokenizerFiles, build_tokenizer, library_errors
from minibert.token_ids import TokenIds, starts_of
from minibert.typing import Array, Int


class TokenizedTexts(NamedTuple):
    """The token ids of some texts.

    Attributes:
        ids: The ids of each text, special tokens included, cut to the limit.
        lengths: How many tokens each text has before the cut, special tokens included.
    """

    ids: TokenIds
    lengths: Int[Array, "texts"]


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Turns texts into token ids. Made by :meth:`from_folder`; never changed afterwards.

    Attributes:
        backend: The ``tokenizers.Tokenizer``, without truncation and padding.
        largest_id: The largest id that a text can get.
        model_max_length: The limit in ``tokenizer_config.json``, or None.
        pad_id: The id that fills up shorter texts.
        special_ids: The ids of the named special tokens.
        prefix: The special ids that go before a text's own.
        suffix: The special ids that go after them.
        truncation_side: Which end a text that is too long loses: ``"right"`` or ``"left"``.
    """

    backend: Tokenizer
    largest_id: int
    model_max_length: int | None
    pad_id: int
    special_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    truncation_side: str = "right"

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        do_lower_case: bool = False,
        overrides: Mapping[str, Any] | None = None,
        tokenizer_class: str | None = None,
    ) -> Self:
        """Return the tokenizer that the files in ``folder`` describe.

        Args:
            folder: Holds ``tokenizer.json`` or ``vocab.txt``, and optionally ``tokenizer_config.json``,
                ``special_tokens_map.json`` and ``added_tokens.json``.
            do_lower_case: Whether ``sentence_bert_config.json`` asks for lower case, on top of the tokenizer's own.
            overrides: Keys that take the place of those in ``tokenizer_config.json``.
            tokenizer_class: The class where ``tokenizer_config.json`` names none.

        Raises:
            TokenizerError: The files are missing, malformed or of a kind that minibert does not implement.
        """
        files = TokenizerFiles.read(folder, overrides or {})
        backend, special, largest_id = build_tokenizer(files, tokenizer_class)
        if do_lower_case:
            _prepend_lowercase(backend)
        with library_errors(folder):
            prefix, suffix = _special_tokens_around(backend)
        special_ids = {role: id_ for role, token in special.items() if (id_ := backend.token_to_id(token)) is not None}
        return cls(
            backend=backend,
            largest_id=largest_id,
            model_max_length=files.max_length,
            pad_id=special_ids.get("pad_token", 0),
            special_ids=frozenset(special_ids.values()),
            prefix=prefix,
            suffix=suffix,
            truncation_side=files.truncation_side,
        )

    @property
    def special_tokens(self) -> int:
        """How many special tokens go around every text: the shortest that a text can be."""
        return len(self.prefix) + len(self.suffix)

    @functools.cached_property
    def public_copy(self) -> Tokenizer:
        """A copy of the backend for others, made once: what they change in it changes no id that is made here."""
        return Tokenizer.from_str(self.backend.to_str())

    def __call__(self, texts: Sequence[str], max_length: int) -> TokenizedTexts:
        """Return the ids of ``texts``, each cut to ``max_length`` tokens, at least the special ones.

        A text that holds the name of a special token, such as ``[SEP]``, gets that token's id, as in transformers.
        """
        encodings = self.encode(texts)
        return TokenizedTexts(self.ids(encodings, max_length), self.lengths(encodings))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the library's own result for each text: the slow part, during which other threads of Python run."""
        return self.backend.encode_batch_fast(list(texts), add_special_tokens=False)

    def lengths(self, encodings: Sequence[Encoding]) -> Int[Array, "texts"]:
        """Return how many tokens each text has before it is cut, special tokens included."""
        return np.fromiter(map(len, encodings), np.intp, len(encodings)) + self.special_tokens

    def cut_lengths(self, lengths: Int[Array, "texts"], max_length: int) -> Int[Array, "texts"]:
        """Return what :meth:`ids` leaves of texts of so many tokens."""
        return np.minimum(lengths, max(max_length, self.special_tokens))

    def ids(self, encodings: Sequence[Encoding], max_length: int) -> TokenIds:
        """Return the ids of what :meth:`encode` returned, cut and with special tokens, as :meth:`__call__` does."""
        whole = self.lengths(encodings)
        # Each step of this chain is made in C. A text's ids are a list only until the next text's are.
        own = map(operator.attrgetter("ids"), encodings)
        parts = itertools.chain.from_iterable(zip(itertools.repeat(self.prefix), own, itertools.repeat(self.suffix)))
        flat = np.fromiter(itertools.chain.from_iterable(parts), np.int32, whole.sum())
        lengths = self.cut_lengths(whole, max_length)
        lost = whole - lengths
        if lost.any():
            room = max(max_length - self.special_tokens, 0)
            first_lost = len(self.prefix) + (0 if self.truncation_side == "left" else room)
            after = np.arange(len(flat)) - np.repeat(starts_of(whole) + first_lost, whole)
            flat = flat[(after < 0) | (after >= np.repeat(lost, whole))]
        return TokenIds(flat, lengths)

    def prompt_length(self, prompt: str, max_length: int) -> int:
        """Return how many tokens a text's leading ``prompt`` takes, the special tokens before it included.

        Counted as sentence-transformers does: the prompt alone, less its last token if that is special.
        """
        ids = self([prompt], max_length).ids.flat.tolist()
        return len(ids) - (ids[-1:] != [] and ids[-1] in self.special_ids)


def _special_tokens_around(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor puts before and after a text's own."""
    own = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return tuple(whole[:start]), tuple(whole[start + len(own) :])
    raise ValueError("its post_processor must keep a text's tokens together, and does not")


def _prepend_lowercase(backend: Tokenizer) -> None:
    """Make the tokenizer lower-case a text first, unless a Lowercase step is there already."""
    present: Any = backend.normalizer
    steps = list(present) if isinstance(present, normalizers.Sequence) else [present] if present else []  # type: ignore[call-overload]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
