"""The reference from token ids to sentence vectors: in float64, with a tap for every result."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

from minibert.bert_model import BertModel
from minibert.engine.threads import one_blas_thread, usable_cores
from minibert.files import checkpoint
from minibert.model import Tap, untapped
from minibert.modules import kinds
from minibert.modules.kinds import Dropout, Features, InPlace, Module, Normalize, Pooling, WordWeights
from minibert.pooling import pool
from minibert.repo import ModelRepo
from minibert.tokenization import TextTokenizer
from minibert.typing import Array, Float, Int

__all__ = ["Reference"]

#: Number of tokens that a thread computes at a time. The results of a layer then fit into a processor's cache.
_TOKENS_AT_ONCE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The model of a repo, with the parameters of its checkpoint in float64.

    Attributes:
        bert: The transformer.
        modules: The modules after it.
        tokenizer: The tokenizer.
        truncate_dim: Number of dimensions that vectors are truncated to, or None.
    """

    bert: BertModel
    modules: tuple[Module, ...]
    tokenizer: TextTokenizer
    truncate_dim: int | None = None

    @classmethod
    def load(cls, repo: ModelRepo, tokenizer: TextTokenizer) -> Self:
        """Return the model of ``repo``. It reads the files again.

        Raises:
            ModelFileError: A file of the repo cannot be used.
        """
        params = checkpoint.load_bert(repo.transformer_folder, repo.config, np.float64)
        modules = tuple(kinds.load(kind, folder, np.float64) for kind, folder in repo.modules)
        return cls(BertModel(repo.config, params), modules, tokenizer)

    def changed(self, *, include_prompt: bool, truncate_dim: int | None) -> Self:
        """Return the same model with other settings."""
        modules = (m.with_prompt(include_prompt) if isinstance(m, Pooling) else m for m in self.modules)
        return dataclasses.replace(self, modules=tuple(modules), truncate_dim=truncate_dim)

    def features(self, ids: Int[Array, "B S"], prompt_length: int = 0, tap: Tap = untapped) -> Features:
        """Return the features of texts of equal length, with sentence-transformers' names.

        Args:
            ids: Token ids, with special tokens.
            prompt_length: Number of tokens of the prompt at the start of each text.
            tap: Takes each result of the transformer, and each feature that a module changes, such as
                ``modules.1.sentence_embedding``: 1 is the first module after the transformer, as in ``modules.json``.
        """
        all_layers = any(module.needs_all_layers for module in self.modules)
        output = self.bert(ids, output_hidden_states=all_layers, tap=tap)
        features: Features = {
            "input_ids": ids,
            "token_type_ids": np.zeros_like(ids),
            "attention_mask": np.ones_like(ids),
            "token_embeddings": output.last_hidden_state,
        }
        if output.hidden_states is not None:
            features["all_layer_embeddings"] = output.hidden_states
        if prompt_length:
            features["prompt_length"] = prompt_length
        for number, module in enumerate(self.modules, 1):
            before = dict(features)
            module(features)
            for name, value in features.items():
                if value is not before.get(name):
                    features[name] = tap(f"modules.{number}.{name}", value)
        features["sentence_embedding"] = features["sentence_embedding"][:, : self.truncate_dim]
        return features

    def vectors(
        self, ids: Int[Array, "B S"], prompt_length: int, tap_of: Callable[[slice], Tap] = lambda _: untapped
    ) -> Float[Array, "B D"]:
        """Return the vectors of texts of equal length. All cores compute.

        Args:
            ids: The token ids of each text.
            prompt_length: Number of tokens of the prompt.
            tap_of: Returns the tap for some of the texts.
        """
        rows = max(1, _TOKENS_AT_ONCE // ids.shape[1])

        def compute(start: int) -> Array:
            part = slice(start, start + rows)
            with one_blas_thread():
                vectors: Array = self.features(ids[part], prompt_length, tap_of(part))["sentence_embedding"]
                return vectors

        with ThreadPoolExecutor(usable_cores()) as pool:
            return np.concatenate(list(pool.map(compute, range(0, len(ids), rows))))

    # ---------------------------------------------------------------- what the modules do

    @property
    def pooling(self) -> Pooling | None:
        """The Pooling module, if it is the only module that turns token vectors into a vector; else None."""
        found = [module for module in self.modules if isinstance(module, Pooling)]
        return found[0] if len(found) == 1 else None

    def why_not_pooled(self) -> str | None:
        """Return why the pooled vector is no sum of the last layer's token vectors, or None if it is one.

        It is a sum of them, each multiplied by its own weights, if only Dropout and WordWeights come before Pooling.
        """
        if self.pooling is None:
            return "there is not exactly one Pooling module"
        for module in self.modules:
            if isinstance(module, Pooling):
                break
            if not isinstance(module, WordWeights | Dropout):
                return f"a {type(module).__name__} module comes before the pooling"
        return None

    def why_not_linear(self) -> str | None:
        """Return why the direction of the vector is not that of the pooled vector, or None if it is.

        It is, if only Dropout and Normalize come after Pooling.
        """
        if why := self.why_not_pooled():
            return why
        for module in self.modules[self.modules.index(self.pooling) + 1 :] if self.pooling else ():
            in_place = isinstance(module, InPlace) and module.source == module.target == module.SENTENCE
            if not (isinstance(module, Dropout) or (isinstance(module, Normalize) and in_place)):
                return f"a {type(module).__name__} module comes after the pooling"
        return None

    def unscaled(self) -> Self:
        """Return the same model without the Normalize modules at its end. The vectors have the same direction."""
        modules = list(self.modules)
        while isinstance(modules[-1], Normalize) and modules[-1].source == modules[-1].target == InPlace.SENTENCE:
            modules.pop()
        return dataclasses.replace(self, modules=tuple(modules))

    def pooled(self, x: Float[Array, "S H"], ids: Int[Array, "S"], prompt_length: int) -> Float[Array, "D"]:
        """Return the pooled vector of other token vectors. Modules that replace token vectors do nothing here."""
        weights = self.pooling_weights(x, ids, prompt_length)
        pooled: Array = (weights * x).sum(axis=1).reshape(-1)
        return pooled

    def pooling_weights(
        self, x: Float[Array, "S H"], ids: Int[Array, "S"], prompt_length: int
    ) -> Float[Array, "modes S H"]:
        """Return the weight of each number of the token vectors ``x`` in each mode.

        The weighted sum over the tokens is the pooled vector. All modes but max have the same weights for all
        dimensions: what they return where one token is 1 and all others are 0. Max takes each dimension from one token.
        """
        pooling = self.pooling
        assert pooling is not None, "the caller has asked why_not_pooled"  # noqa: S101
        features: Features = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
        features["token_embeddings"] = np.ones((1, len(ids), 1))
        for module in self.modules[: self.modules.index(pooling)]:
            if isinstance(module, WordWeights):
                module(features)
        of_words, total = features["token_embeddings"][0], features.get("token_weights_sum")  # (S, 1), (1,)
        mask = np.ones((len(ids), len(ids)), bool)
        exclude = 0 if pooling.include_prompt else prompt_length
        weights = np.empty((len(pooling.modes), *x.shape))
        for number, mode in enumerate(pooling.modes):
            if mode == "max":
                kept = np.where(np.arange(len(ids))[:, None] >= exclude, x * of_words, -np.inf)
                weights[number] = of_words * (np.arange(len(ids))[:, None] == kept.argmax(axis=0))
            else:
                one_token, sums = np.eye(len(ids))[..., None], None if total is None else total.repeat(len(ids))
                weights[number] = of_words * pool([mode], one_token, mask, exclude=exclude, weight_sum=sums)
        return weights
