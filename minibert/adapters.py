"""The methods that LangChain and scikit-learn call. Neither library is imported.

LangChain: ``langchain_core.embeddings.Embeddings``. scikit-learn: the estimator and transformer protocols. So an
encoder can be a step of a ``Pipeline``, and ``GridSearchCV`` can search over its parameters.
"""

import copy
import importlib
import sys
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from minibert.inputs import require_choice
from minibert.settings import NAMES, Settings, chosen
from minibert.typing import Array

#: What ``transform`` can return. ``"default"`` is a numpy array.
_CONTAINERS = ("default", "pandas", "polars")


def known_to_langchain(cls: type) -> None:
    """Make instances of ``cls`` LangChain's ``Embeddings`` for ``isinstance``, if LangChain's class was imported.

    Some vector stores take anything else for a function. The class inherits nothing: it has the methods already.
    """
    langchain = sys.modules.get("langchain_core.embeddings")
    if embeddings := getattr(langchain, "Embeddings", None):
        embeddings.register(cls)


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
        _container: What ``set_output`` chose for ``transform``, or None.
    """

    _arguments: dict[str, Any]
    _own: dict[str, Any]
    _settings: Settings
    _container: str | None = None

    def encode(self, inputs: Any) -> Any:
        """Return the vectors of texts."""
        raise NotImplementedError

    def get_embedding_dimension(self) -> int:
        """Return the number of dimensions of a vector."""
        raise NotImplementedError

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: ARG002, N803
        """Return the encoder itself: there is nothing to fit."""
        return self

    def transform(self, X: Any) -> Any:  # noqa: N803
        """Return ``encode`` of the texts in ``X``: an array ``(n, D)``, or the data frame that was chosen.

        :meth:`set_output` chooses, or else ``sklearn.set_config(transform_output=...)``. The columns of a data frame
        are :meth:`get_feature_names_out`. If ``X`` is a pandas column, a pandas data frame has its index.

        Raises:
            ImportError: The library of the data frame is not installed.
        """
        container = self._container or _configured_container()
        if container == "default":
            return self.encode(X)
        library, names = _library(container), list(self.get_feature_names_out())
        if container == "polars":
            return library.DataFrame(self.encode(X), schema=names, orient="row")
        index = X.index if isinstance(X, library.Series) else None  # a list has a method with the name `index`
        return library.DataFrame(self.encode(X), columns=names, index=index)

    def fit_transform(self, X: Any, y: Any = None) -> Any:  # noqa: ARG002, N803
        """Return :meth:`transform` of ``X``."""
        return self.transform(X)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what :meth:`transform` and :meth:`fit_transform` return, as for every transformer of scikit-learn.

        Args:
            transform: ``"default"`` for a numpy array, ``"pandas"`` or ``"polars"`` for a data frame. None changes
                nothing.

        Raises:
            ValueError: ``transform`` has another value.
        """
        require_choice("transform", transform, (None, *_CONTAINERS))
        self._container = self._container if transform is None else transform
        return self

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


def _configured_container() -> str:
    """Return what ``sklearn.set_config(transform_output=...)`` chose; ``"default"`` without scikit-learn."""
    sklearn = sys.modules.get("sklearn")
    return sklearn.get_config().get("transform_output", "default") if sklearn else "default"


def _library(name: str) -> Any:
    """Return the library of a data frame, or raise ImportError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'transform="{name}" needs {name}, which cannot be imported ({error}): pip install {name}, or choose '
            'the numpy array with set_output(transform="default").'
        ) from error
