"""Tokenization: from texts to token ids, the same ids that transformers 5 gives.

The splitting itself is done by the ``tokenizers`` library; :mod:`minibert.tokenizer_files` sets it up.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from tokenizers import Tokenizer, normalizers

from minibert.tokenizer_files import TokenizerFiles, build_tokenizer, library_errors


class TokenizedTexts(NamedTuple):
    """The token ids of some texts.

    Attributes:
        ids: One list of ids a text, special tokens included, cut to the limit.
        lengths: How many tokens each text has before the cut, special tokens included.
    """

    ids: list[list[int]]
    lengths: list[int]


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

    def __call__(self, texts: Sequence[str], max_length: int) -> TokenizedTexts:
        """Return the ids of ``texts``, each cut to ``max_length`` tokens, at least the special ones.

        A text that holds the name of a special token, such as ``[SEP]``, gets that token's id, as in transformers.
        """
        own = [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        room = max(max_length - self.special_tokens, 0)
        ids = []
        for content in own:
            if len(content) <= room:
                kept = content
            else:
                kept = content[len(content) - room :] if self.truncation_side == "left" else content[:room]
            ids.append([*self.prefix, *kept, *self.suffix])
        return TokenizedTexts(ids, [len(content) + self.special_tokens for content in own])

    def prompt_length(self, prompt: str, max_length: int) -> int:
        """Return how many tokens a text's leading ``prompt`` takes, the special tokens before it included.

        Counted as sentence-transformers does: the prompt alone, less its last token if that is special.
        """
        (ids,), _ = self([prompt], max_length)
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
