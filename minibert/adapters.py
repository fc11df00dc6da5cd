"""The methods that LangChain and scikit-learn call. Neither library is imported.

LangChain: ``langchain_core.embeddings.Embeddings``. scikit-learn: the estimator and transformer protocols. So an
encoder can be a step of a ``Pipeline``, and ``GridSearchCV`` can search over its parameters.
"""

import copy
import sys
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from minibert.settings import NAMES, Settings, chosen
from minibert.typing import Array, Float


class LangChainEmbeddings:
    """LangChain's Embeddings, based on ``encode_document`` and ``encode_query``."""

    def encode_query(self, inputs: Any) -> Any:
        """Return the vectors of queries."""
        raise NotImplementedError

    def encode_document(self, inputs: Any) -> Any:
        """Return the vectors of documents."""
        raise NotImplementedError

    def embed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """Return the vectors of ``texts``, with the document prompt, as lists of Python floats."""
        if isinstance(texts, str):
            raise TypeError("embed_documents takes a list of texts; got a single text (str). Put it in a list.")
        return self.encode_document(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of ``text``, with the query prompt, as a list of Python floats."""
        if not isinstance(text, str):
            raise TypeError(f"embed_query takes a single text (str); got a {type(text).__name__}.")
        return self.encode_query(text).tolist()

    async def aembed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """Return :meth:`embed_documents`, computed in another thread."""
        import asyncio  # here, because its import takes longer than the rest of minibert

        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Return :meth:`embed_query`, computed in another thread."""
        import asyncio

        return await asyncio.to_thread(self.embed_query, text)


class ScikitLearnTransformer:
    """scikit-learn's transformer protocol, based on ``encode``.

    A subclass must support :func:`copy.copy`.

    Attributes:
        _arguments: The arguments of the constructor, by name.
        _own: The model's own settings, by name.
        _settings: The current settings.
    """

    _arguments: dict[str, Any]
    _own: dict[str, Any]
    _settings: Settings

    def encode(self, inputs: Any) -> Any:
        """Return the vectors of texts."""
        raise NotImplementedError

    def get_embedding_dimension(self) -> int:
        """Return the number of dimensions of a vector."""
        raise NotImplementedError

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: ARG002, N803
        """Return the encoder itself: there is nothing to fit."""
        return self

    def transform(self, X: Any) -> Float[Array, "n D"]:  # noqa: N803
        """Return ``encode`` of the texts in ``X``."""
        return self.encode(X)

    def fit_transform(self, X: Any, y: Any = None) -> Float[Array, "n D"]:  # noqa: ARG002, N803
        """Return :meth:`transform` of ``X``."""
        return self.transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the constructor's arguments, by name.

        Each argument has its original value. If its setting was changed later, it has the current value.
        """
        return {**self._arguments, **self._settings.different(chosen(self._arguments, self._own))}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments. The model is loaded again only if a changed argument is not a setting.

        None resets a setting to its default. If an argument is refused, nothing changes.

        Raises:
            TypeError: A prompt is not a text.
            ValueError: The constructor has no such argument, or the argument has an invalid value.
            ModelFileError: A new model cannot be used.
        """
        if unknown := sorted(params.keys() - self._arguments.keys()):
            raise ValueError(f"{type(self).__name__} has no parameter {', '.join(unknown)}.")
        present = self.get_params()
        changed = {name: value for name, value in params.items() if value is not present[name] != value}
        if changed.keys() <= set(NAMES):
            settings = self._settings.changed(**chosen(changed, self._own))
            self._arguments, self._settings = {**self._arguments, **changed}, settings
        else:
            self.__dict__.update(type(self)(**{**present, **changed}).__dict__)  # if it loads
        return self

    def get_feature_names_out(self, input_features: Any = None) -> Array:  # noqa: ARG002
        """Return a name for each dimension: ``sentenceencoder0``, ``sentenceencoder1``, ..."""
        name = type(self).__name__.lower()
        return np.array([f"{name}{i}" for i in range(self.get_embedding_dimension())], dtype=object)

    def __sklearn_clone__(self) -> Self:
        return copy.copy(self)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        sklearn = sys.modules["sklearn.utils"]  # only scikit-learn calls this method
        return sklearn.Tags(
            estimator_type=None,
            target_tags=sklearn.TargetTags(required=False),
            transformer_tags=sklearn.TransformerTags(preserves_dtype=[]),
            input_tags=sklearn.InputTags(one_d_array=True, two_d_array=False, string=True),
            requires_fit=False,
        )
