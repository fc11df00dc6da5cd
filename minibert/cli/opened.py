"""An open model repo without the values of its weights. ``minibert inspect`` reports on it."""

import dataclasses
import functools
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from tokenizers import normalizers

from minibert.errors import ConfigError
from minibert.files import checkpoint
from minibert.files.checkpoint import StoredTensor
from minibert.files.tokenizer_files import TokenizerFiles
from minibert.modules import chain, kinds
from minibert.modules.kinds import Module
from minibert.pipeline import open_flow, open_tokenizer
from minibert.repo import DEFAULT_PROMPTS, TRANSFORMER_CONFIGS, ModelRepo
from minibert.tokenization import TextTokenizer


class Casing(NamedTuple):
    """How a tokenizer changes letters before it splits a text."""

    lower_cases: bool
    strips_accents: bool

    def __str__(self) -> str:
        case = "lower-cases" if self.lower_cases else "keeps case"
        return f"{case} and {'strips' if self.strips_accents else 'keeps'} accents"


@dataclasses.dataclass(frozen=True)
class OpenedRepo:
    """A model repo and its content, without the values of the BertModel's weights.

    Attributes:
        repo: Its description.
        tokenizer_files: The unchanged content of the tokenizer's files.
        tokenizer: The tokenizer made from them.
        modules: The modules after the transformer.
        stored: All tensors of the BertModel's checkpoint, in their order in the file.
        tensors: The tensors that belong to the BertModel.
    """

    repo: ModelRepo
    tokenizer_files: TokenizerFiles
    tokenizer: TextTokenizer
    modules: tuple[Module, ...]
    stored: tuple[StoredTensor, ...]
    tensors: tuple[StoredTensor, ...]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the repo in ``folder``.

        Raises:
            ModelFileError: As in :class:`~minibert.encoder.SentenceEncoder`, but the values of weights are not checked.
        """
        repo = ModelRepo.open(folder)
        opened = cls(
            repo=repo,
            tokenizer_files=TokenizerFiles.read(repo.transformer_folder, repo.transformer.tokenizer_overrides),
            tokenizer=open_tokenizer(repo),
            modules=tuple(kinds.load(kind, path, np.float32) for kind, path in repo.modules),
            stored=tuple(checkpoint.open_weights(repo.transformer_folder).values()),
            tensors=tuple(checkpoint.open_bert(repo.transformer_folder, repo.config).values()),
        )
        chain.connect(opened.modules, open_flow(repo, opened.tokenizer))
        if repo.default_prompt_name not in {None, *opened.prompts}:
            raise ConfigError(
                f"{folder}: default_prompt_name must be one of {', '.join(opened.prompts)}; "
                f"it is {repo.default_prompt_name!r}."
            )
        return opened

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name, with the two empty default prompts of every model."""
        return {**DEFAULT_PROMPTS, **self.repo.prompts}

    @property
    def dimensions(self) -> list[int]:
        """Width of the vectors after the transformer and after each module."""
        flow = open_flow(self.repo, self.tokenizer)
        dimensions = [self.repo.config.hidden_size]
        for module in self.modules:
            module.connect(flow)
            dimensions.append(flow.widths.get("sentence_embedding", flow.widths["token_embeddings"]))
        return dimensions

    @functools.cached_property  # computed once: it can log a warning
    def max_seq_length(self) -> int:
        """Maximum number of tokens of a text."""
        return self.repo.max_seq_length(self.tokenizer.model_max_length)

    @property
    def max_seq_length_source(self) -> str:
        """Where :attr:`max_seq_length` comes from."""
        if self.repo.transformer.max_seq_length is not None:
            return f"max_seq_length in {self.transformer_config}"
        if self.tokenizer.model_max_length == self.max_seq_length:
            return f"model_max_length in {self._tokenizer_source('model_max_length')}"
        return "max_position_embeddings in config.json"

    @property
    def casing(self) -> Casing:
        """The changes to letters. They are found with a test text, not from flags."""
        normalizer: Any = self.tokenizer.backend.normalizer
        seen = unicodedata.normalize("NFD", "É" if normalizer is None else normalizer.normalize_str("É"))
        return Casing("e" in seen, "\N{COMBINING ACUTE ACCENT}" not in seen)

    @property
    def casing_source(self) -> str:
        """Which file decides about :attr:`casing`."""
        if self.repo.transformer.do_lower_case:
            return f"do_lower_case in {self.transformer_config}"
        config = self.tokenizer_files.config
        tokenizer_class = config.get("tokenizer_class") or self.repo.tokenizer_class
        as_is = tokenizer_class in {"PreTrainedTokenizerFast", "TokenizersBackend"}
        if as_is or not isinstance(self.tokenizer.backend.normalizer, normalizers.BertNormalizer):
            return "the normalizer of tokenizer.json"
        stated = [key for key in ("do_lower_case", "strip_accents") if config.get(key) is not None]
        sources = [f"{key} in {self._tokenizer_source(key)}" for key in stated]
        return " and ".join(sources if "do_lower_case" in stated else ["BERT's default", *sources])

    @property
    def transformer_config(self) -> str:
        """The name of ``sentence_bert_config.json`` in this repo."""
        folder = self.repo.transformer_folder
        return next((name for name in TRANSFORMER_CONFIGS if (folder / name).is_file()), TRANSFORMER_CONFIGS[0])

    def _tokenizer_source(self, key: str) -> str:
        overridden = key in self.repo.transformer.tokenizer_overrides
        return self.transformer_config if overridden else "tokenizer_config.json"
