"""The loaded model of a repo: the tokenizer, the transformer's parameters, and the modules after it."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from minibert.config import BertConfig
from minibert.engine import packed
from minibert.engine.devices import Engine
from minibert.engine.fused import Fused
from minibert.engine.packed import PackedParams
from minibert.engine.packing import Group, Packing
from minibert.engine.rows import RowRule
from minibert.engine.token_ids import TokenIds
from minibert.errors import ConfigError, TokenizerError
from minibert.families import FAMILIES
from minibert.files.checkpoint import BertReader
from minibert.modules import chain, kinds
from minibert.modules.chain import AtOnce
from minibert.modules.kinds import Features, Flow, Module, Pooling
from minibert.repo import ModelRepo
from minibert.tokenization import TextTokenizer
from minibert.typing import Array, Int


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """From token ids to the features of each module. The features have sentence-transformers' names.

    A pipeline is read-only after loading.

    Attributes:
        config: The transformer's configuration.
        tokenizer: The tokenizer.
        params: The transformer's parameters.
        row_rule: The packing rule. With it, the bits of a vector depend only on its text.
        loaded: The modules after the transformer, with the arithmetic of numpy.
        modules: The same modules with the engine's arithmetic of host memory.
        at_once: The parts of the modules with the engine's arithmetic, if they pool first and then use only the
            vectors; else None.
        dimension: Number of dimensions of a sentence vector.
        max_seq_length: Maximum number of tokens of a text, from the repo.
    """

    config: BertConfig
    tokenizer: TextTokenizer
    params: PackedParams
    row_rule: RowRule
    loaded: tuple[Module, ...]
    modules: tuple[Module, ...]
    at_once: AtOnce | None
    dimension: int
    max_seq_length: int

    @classmethod
    def load(cls, repo: ModelRepo, engine: Engine) -> Self:
        """Return the model of ``repo``, with its parameters on the device of ``engine``.

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
        modules = tuple(kinds.load(kind, folder, engine.dtype) for kind, folder in repo.modules)
        dimension = chain.connect(modules, open_flow(repo, tokenizer))
        weights = BertReader(repo.transformer_folder, repo.config, engine.dtype)
        params, row_rule = engine.load(weights, repo.config)  # last: it takes the longest
        on_host, at_once = _on(engine, modules)
        return cls(repo.config, tokenizer, params, row_rule, modules, on_host, at_once, dimension, max_seq_length)

    def portable(self, engine: Engine) -> Self:
        """Return the same model as numpy arrays, for a pickle. :meth:`adopted` makes it usable again.

        Raises:
            TypeError: The parameters cannot leave the device.
        """
        params = engine.portable(self.params, self.config)
        return dataclasses.replace(self, params=params, modules=self.loaded, at_once=None)

    def adopted(self, engine: Engine) -> Self:
        """Return a model from :meth:`portable` for another engine, perhaps on another machine."""
        params, row_rule = engine.adopt(self.params, self.config)
        modules, at_once = _on(engine, self.loaded)
        return dataclasses.replace(self, params=params, row_rule=row_rule, modules=modules, at_once=at_once)

    def width(self, truncate_dim: int | None) -> int:
        """Return the number of dimensions of ``vector[:truncate_dim]``."""
        return len(range(self.dimension)[:truncate_dim])

    @functools.cached_property
    def include_prompt(self) -> bool:
        """Whether the last Pooling module includes the tokens of the prompt; True if there is no Pooling."""
        return next((module.include_prompt for module in self.modules[::-1] if isinstance(module, Pooling)), True)

    def with_prompt_pooled(self, include_prompt: bool) -> Self:
        """Return the same model with another ``include_prompt``."""
        if include_prompt == self.include_prompt:
            return self
        loaded, modules = (
            tuple(m.with_prompt(include_prompt) if isinstance(m, Pooling) else m for m in each)
            for each in (self.loaded, self.modules)
        )
        at_once = self.at_once
        if at_once is not None:
            at_once = at_once._replace(pooling=at_once.pooling.with_prompt(include_prompt))
        return dataclasses.replace(self, loaded=loaded, modules=modules, at_once=at_once)

    def checked_ids(self, texts: Sequence[Int[Array, "tokens"]]) -> TokenIds:
        """Return the ids of texts from outside.

        Raises:
            ValueError: An id is not in the vocabulary, or a text ends with padding. The message has the index of the
                text.
        """
        flat = np.concatenate([np.zeros(0, np.int32), *texts])
        ids = TokenIds(flat.astype(np.int32), np.fromiter(map(len, texts), np.intp, len(texts)))
        outside = np.flatnonzero((flat < 0) | (flat >= self.config.vocab_size))
        if len(outside):
            item = int(np.searchsorted(ids.lengths.cumsum(), outside[0], side="right"))
            raise ValueError(
                f"every token id must be from 0 to {self.config.vocab_size - 1}, the last of the model's vocabulary; "
                f"item {item} has {flat[outside[0]]} at position {outside[0] - ids.starts[item]}. Did another model's "
                "tokenizer make it?"
            )
        pad, filled = self.tokenizer.pad_id, np.flatnonzero(ids.lengths)
        padded = filled[ids.flat[ids.starts[filled] + ids.lengths[filled] - 1] == pad]
        if len(padded) and self.tokenizer.suffix[-1:] != (pad,):
            raise ValueError(
                f"token ids must have no padding; item {padded[0]} ends with the id {pad}, which pads shorter texts. "
                "Give each text its own ids only."
            )
        return ids

    def pad(self, ids: TokenIds) -> dict[str, Int[Array, "B S"]]:
        """Return ``input_ids``, ``token_type_ids`` and ``attention_mask`` of texts, padded at the end."""
        attention_mask = np.arange(ids.lengths.max(initial=0)) < ids.lengths[:, None]
        input_ids = np.full(attention_mask.shape, self.tokenizer.pad_id, np.int64)
        input_ids[attention_mask] = ids.flat
        return {
            "input_ids": input_ids,
            "token_type_ids": np.zeros_like(input_ids),
            "attention_mask": attention_mask.astype(np.int64),
        }

    def sentence_features(self, ids: TokenIds, fused: Fused, prompt_length: int = 0) -> Iterator[Features]:
        """Yield the features of the texts, with ``sentence_embedding``, in groups of texts, in order.

        The vectors stay on the device, in their own memory. If the vectors need no other features, all texts are one
        group, and there are no other features.

        Args:
            ids: Token ids of each text, with special tokens.
            fused: The operations of the device.
            prompt_length: Number of tokens of the prompt at the start of each text.
        """
        offsets = self._offsets(ids)
        packing = Packing.of(ids.lengths, offsets, self.row_rule)
        if self.at_once is None:
            yield from self._features(ids, packing, fused, prompt_length)
            return
        pooling, normalize, rest = self.at_once
        first = None
        if chain.takes_first_token(self.modules, prompt_length):
            first = packing.first_tokens(offsets, self.row_rule)
        pooled = packing if first is None else first
        exclude = 0 if pooling.include_prompt else prompt_length

        def compute() -> Array:
            hidden = packed.bert(self.params, self.config, ids.flat, packing, fused, first)
            return fused.pool(pooling.modes, hidden, pooled, exclude, normalize=normalize)

        key = pooling.modes, exclude, normalize, first is None
        vectors = fused.recorded(key, ids.flat, packing, first, compute)
        features: Features = {"sentence_embedding": vectors}
        for module in rest:
            module(features)
        yield features

    def token_features(self, ids: TokenIds, fused: Fused, prompt_length: int = 0) -> Iterator[Features]:
        """Yield all features of the texts, in host memory, in groups of equal length, in order.

        ``sentence_embedding`` is bit for bit that of :meth:`sentence_features`.
        """
        packing = Packing.of(ids.lengths, self._offsets(ids), self.row_rule)
        vectors = [features["sentence_embedding"] for features in self.sentence_features(ids, fused, prompt_length)]
        sentence = np.concatenate([fused.to_host(group) for group in vectors])
        start = 0
        for features in self._features(ids, packing, fused, prompt_length):
            texts = len(features["input_ids"])
            features["sentence_embedding"] = sentence[start : start + texts]
            tokens = features["attention_mask"][0].sum()
            features["token_embeddings"] = features["token_embeddings"][:, :tokens].copy()
            start += texts
            yield features

    def _offsets(self, ids: TokenIds) -> Int[Array, "texts"] | None:
        """Return a number for each text, computed from its ids, if :meth:`Packing.of` needs them; else None."""
        return ids.sums() if self.row_rule.needs_offsets else None

    def _features(self, ids: TokenIds, packing: Packing, fused: Fused, prompt_length: int) -> Iterator[Features]:
        layers: list[Array] = []
        all_layers = any(module.needs_all_layers for module in self.modules)
        keep = (lambda x: layers.append(fused.unpack(x, packing).copy())) if all_layers else (lambda _: None)
        hidden = packed.bert(self.params, self.config, ids.flat, packing, fused, output_hidden_states=keep)
        hidden = fused.unpack(hidden, packing)
        for group in packing.groups:
            yield self._apply_modules(group, ids.flat, hidden, layers, prompt_length)

    def _apply_modules(
        self, group: Group, ids: Int[Array, "tokens"], hidden: Array, layers: Sequence[Array], prompt_length: int
    ) -> Features:
        """Return the features of a group of texts from the transformer and from the modules after it."""
        input_ids, vectors = group.of(ids).astype(np.int64), group.of(hidden)
        attention_mask = np.ones_like(input_ids)
        if group.tokens == 0:  # modules need at least one token, even if it is masked
            input_ids = attention_mask = np.zeros((group.texts, 1), np.int64)
            vectors = np.zeros((group.texts, 1, hidden.shape[1]), hidden.dtype)
            layers = [vectors] * len(layers)
        features: Features = {
            "input_ids": input_ids,
            "token_type_ids": np.zeros_like(input_ids),
            "attention_mask": attention_mask,
            "token_embeddings": vectors,
        }
        if layers:
            features["all_layer_embeddings"] = tuple(group.of(layer) if group.tokens else layer for layer in layers)
        if prompt_length:
            features["prompt_length"] = prompt_length
        for module in self.modules:
            module(features)
        return features


def _on(engine: Engine, modules: tuple[Module, ...]) -> tuple[tuple[Module, ...], AtOnce | None]:
    """Return modules with the engine's arithmetic: of host memory; and the parts of :func:`chain.at_once`."""
    on_host = tuple(module.on(engine.host_arithmetic) for module in modules)
    if engine.arithmetic is engine.host_arithmetic:
        return on_host, chain.at_once(on_host)
    at_once = chain.at_once(modules)
    if at_once is not None:
        at_once = at_once._replace(rest=tuple(module.on(engine.arithmetic) for module in at_once.rest))
    return on_host, at_once


def open_flow(repo: ModelRepo, tokenizer: TextTokenizer) -> Flow:
    """Return the input of the modules after the transformer of ``repo``."""
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
        tokenizer_class=repo.tokenizer_class or FAMILIES[repo.config.model_type].tokenizer,
    )
    if tokenizer.largest_id >= repo.config.vocab_size:
        raise TokenizerError(
            f"{folder}: the tokenizer's ids must be below vocab_size = {repo.config.vocab_size}; "
            f"they go up to {tokenizer.largest_id}."
        )
    return tokenizer
