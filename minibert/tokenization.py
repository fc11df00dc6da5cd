"""Tokenization: it turns texts into token ids, the same ids as in transformers 5.

The ``tokenizers`` library splits the texts. :mod:`minibert.files.tokenizer_files` sets it up.
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

from minibert.engine.token_ids import TokenIds, starts_of
from minibert.files.tokenizer_files import TokenizerFiles, build_tokenizer, encoding_errors, library_errors
from minibert.typing import Array, Int


class TokenizedTexts(NamedTuple):
    """The token ids of some texts.

    Attributes:
        ids: The ids of each text with special tokens, truncated to the limit.
        lengths: Number of tokens of each text before truncation, with special tokens.
    """

    ids: TokenIds
    lengths: Int[Array, "texts"]


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Turns texts into token ids. :meth:`from_folder` makes it. It never changes afterwards.

    Attributes:
        backend: The ``tokenizers.Tokenizer``, without truncation and padding.
        largest_id: The largest id that can occur in a text.
        model_max_length: The limit in ``tokenizer_config.json``, or None.
        pad_id: The id that pads shorter texts.
        blank_id: The id that stands for a hidden word: of the mask token, or else of the unknown token.
        special_ids: The ids of the named special tokens.
        prefix: The special ids before a text's own ids.
        suffix: The special ids after a text's own ids.
        truncation_side: The end at which a long text is truncated: ``"right"`` or ``"left"``.
        folder: The folder of the files, for messages.
    """

    backend: Tokenizer
    largest_id: int
    model_max_length: int | None
    pad_id: int
    blank_id: int
    special_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    truncation_side: str = "right"
    folder: Path = Path()

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
            folder: It has ``tokenizer.json`` or ``vocab.txt``, and optionally ``tokenizer_config.json``,
                ``special_tokens_map.json`` and ``added_tokens.json``.
            do_lower_case: Whether ``sentence_bert_config.json`` asks for lower case. The tokenizer may also do it.
            overrides: Keys that replace those in ``tokenizer_config.json``.
            tokenizer_class: The class if ``tokenizer_config.json`` names none.

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
            blank_id=special_ids.get("mask_token", special_ids.get("unk_token", 0)),
            special_ids=frozenset(special_ids.values()),
            prefix=prefix,
            suffix=suffix,
            truncation_side=files.truncation_side,
            folder=folder,
        )

    @property
    def special_tokens(self) -> int:
        """Number of special tokens around every text: the smallest length of a text."""
        return len(self.prefix) + len(self.suffix)

    @functools.cached_property
    def public_copy(self) -> Tokenizer:
        """A copy of the backend for users, made once. If they change it, the ids of this object do not change."""
        return Tokenizer.from_str(self.backend.to_str())

    def __call__(self, texts: Sequence[str], max_length: int) -> TokenizedTexts:
        """Return the ids of ``texts``, truncated to ``max_length`` tokens. The special tokens are always kept.

        If a text contains the name of a special token, such as ``[SEP]``, it gets that token's id, as in transformers.
        """
        encodings = self.encode(texts)
        return TokenizedTexts(self.ids(encodings, max_length), self.lengths(encodings))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the library's own result for each text. This is slow, but other Python threads can run meanwhile."""
        with encoding_errors(self.folder):
            return self.backend.encode_batch_fast(list(texts), add_special_tokens=False)

    def lengths(self, encodings: Sequence[Encoding]) -> Int[Array, "texts"]:
        """Return the number of tokens of each text before truncation, with special tokens."""
        return np.fromiter(map(len, encodings), np.intp, len(encodings)) + self.special_tokens

    def cut_lengths(self, lengths: Int[Array, "texts"], max_length: int) -> Int[Array, "texts"]:
        """Return the lengths after truncation, from the lengths before it."""
        return np.minimum(lengths, max(max_length, self.special_tokens))

    def ids(self, encodings: Sequence[Encoding], max_length: int) -> TokenIds:
        """Return the ids from the results of :meth:`encode`, truncated and with special tokens."""
        whole = self.lengths(encodings)
        # This chain runs in C. Only one text's ids are a Python list at a time.
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
        """Return the number of tokens of a ``prompt`` at the start of a text, with the special tokens before it.

        sentence-transformers counts in the same way: the prompt alone, without its last token if that is special.
        """
        ids = self([prompt], max_length).ids.flat.tolist()
        return len(ids) - (ids[-1:] != [] and ids[-1] in self.special_ids)


def _special_tokens_around(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor adds before and after a text's own ids."""
    own = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return tuple(whole[:start]), tuple(whole[start + len(own) :])
    raise ValueError("its post_processor must keep a text's tokens together, and does not")


def _prepend_lowercase(backend: Tokenizer) -> None:
    """Add a Lowercase step as the first step of the tokenizer, unless it has one already."""
    present: Any = backend.normalizer
    steps = list(present) if isinstance(present, normalizers.Sequence) else [present] if present else []  # type: ignore[call-overload]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
