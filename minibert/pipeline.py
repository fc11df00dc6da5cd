"""A repo's model, loaded: the tokenizer, the transformer's parameters, and the modules after it."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from minibert import checkpoint, modules
from minibert.config import BertConfig
from minibert.errors import ConfigError, TokenizerError
from minibert.model import bert
from minibert.modules import Features, Flow, Module, Pooling
from minibert.params import BertParams
from minibert.repo import ModelRepo
from minibert.tokenization import TextTokenizer
from minibert.typing import Array, DType, Int


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """From token ids to the features of each module, in sentence-transformers' names. Read-only once loaded.

    Attributes:
        config: The transformer's sizes and choices.
        tokenizer: Makes the ids.
        params: The transformer's parameters.
        modules: The modules after the transformer.
        dimension: Width of a sentence vector.
        max_seq_length: The most tokens of a text that the repo asks for.
    """

    config: BertConfig
    tokenizer: TextTokenizer
    params: BertParams
    modules: tuple[Module, ...]
    dimension: int
    max_seq_length: int

    @classmethod
    def load(cls, repo: ModelRepo, dtype: DType) -> Self:
        """Return the model of ``repo``, its parameters in ``dtype``.

        Raises:
            ModelFileError: A file of the repo cannot be used, or two of them contradict each other.
        """
        tokenizer = open_tokenizer(repo)
        max_seq_length = repo.max_seq_length(tokenizer.model_max_length)
        if max_seq_length < tokenizer.special_tokens:
            raise ConfigError(
                f"{repo.transformer_folder}: max_seq_length must leave room for the {tokenizer.special_tokens} special "
                f"tokens around a text; it is {max_seq_length}."
            )
        chain = tuple(modules.load(kind, folder, dtype) for kind, folder in repo.modules)
        dimension = modules.connect(chain, open_flow(repo, tokenizer))
        params = checkpoint.load_bert(repo.transformer_folder, repo.config, dtype)  # last: it takes the longest
        return cls(repo.config, tokenizer, params, chain, dimension, max_seq_length)

    def with_prompt_pooled(self, include_prompt: bool) -> Self:
        """Return the same model, with the tokens of a prompt pooled together with the text's own, or left out."""
        chain = tuple(
            Pooling(module.modes, include_prompt=include_prompt) if isinstance(module, Pooling) else module
            for module in self.modules
        )
        return dataclasses.replace(self, modules=chain)

    def pad(self, ids: Sequence[Sequence[int]]) -> dict[str, Int[Array, "B S"]]:
        """Return ``input_ids``, ``token_type_ids`` and ``attention_mask`` of texts, padded at the end."""
        longest = max((len(row) for row in ids), default=0)
        input_ids = np.full((len(ids), longest), self.tokenizer.pad_id, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        return {
            "input_ids": input_ids,
            "token_type_ids": np.zeros_like(input_ids),
            "attention_mask": attention_mask,
        }

    def __call__(self, ids: Sequence[Sequence[int]], prompt_length: int = 0) -> Features:
        """Return all features of a batch of texts: the transformer's, and those of the modules after it.

        Args:
            ids: Token ids, special tokens included; at least one text.
            prompt_length: How many of each text's first tokens are a prompt.
        """
        features: Features = self.pad(ids)
        all_layers = any(module.needs_all_layers for module in self.modules)
        output = bert(
            self.params,
            self.config,
            features["input_ids"],
            features["attention_mask"].astype(bool),
            features["token_type_ids"],
            output_hidden_states=all_layers,
        )
        features["token_embeddings"] = output.last_hidden_state
        if all_layers:
            features["all_layer_embeddings"] = output.hidden_states
        if prompt_length:
            features["prompt_length"] = prompt_length
        for module in self.modules:
            module(features)
        return features


def open_flow(repo: ModelRepo, tokenizer: TextTokenizer) -> Flow:
    """Return what the modules after the transformer of ``repo`` have to work with."""
    widths = {"token_embeddings": repo.config.hidden_size}
    return Flow(widths, repo.config.num_hidden_layers, tokens=tokenizer.largest_id + 1)


def open_tokenizer(repo: ModelRepo) -> TextTokenizer:
    """Return the tokenizer of ``repo``.

    Raises:
        TokenizerError: Its files cannot be used, or it has more tokens than the model.
    """
    folder, settings = repo.transformer_folder, repo.transformer
    tokenizer = TextTokenizer.from_folder(
        folder,
        do_lower_case=settings.do_lower_case,
        overrides=settings.tokenizer_overrides,
        tokenizer_class=repo.tokenizer_class,
    )
    if tokenizer.largest_id >= repo.config.vocab_size:
        raise TokenizerError(
            f"{folder}: the tokenizer's ids must be below vocab_size = {repo.config.vocab_size}; "
            f"they go up to {tokenizer.largest_id}."
        )
    return tokenizer
