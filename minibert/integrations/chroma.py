"""An embedding function for Chroma: ``create_collection(..., embedding_function=MinibertEmbeddingFunction())``.

Chroma stores its name and configuration with the collection. A program that opens the collection again must import
this module first; then Chroma makes the function from the configuration.
"""

from typing import Any

from minibert.integrations.common import installed, opened, vectors
from minibert.typing import Array

with installed("chromadb"):
    from chromadb import EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function

#: The names of Chroma's spaces, by minibert's name of the similarity.
_SPACES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


@register_embedding_function
class MinibertEmbeddingFunction(EmbeddingFunction):
    """The vectors of ``encode_document`` and ``encode_query``. The default space is the model's own similarity.

    Args:
        name: A local folder, or a hub repo id. None is the built-in model.
        revision: Branch, tag or commit of the hub repo.
        truncate_dim: Number of dimensions that vectors are truncated to.
        fingerprint: The fingerprint that the model must have. It is in the configuration that Chroma stores.

    Attributes:
        encoder: The model.

    Raises:
        ValueError: The model has another fingerprint.
    """

    def __init__(
        self,
        name: str | None = None,
        revision: str | None = None,
        truncate_dim: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.encoder = opened(name, revision, truncate_dim, fingerprint)
        self._config = {"name": name, "revision": revision, "truncate_dim": truncate_dim}

    def __call__(self, input: list[str]) -> list[Array]:  # noqa: A002  # Chroma checks this name
        """Return the vectors of documents."""
        return list(vectors(self.encoder, input, "document"))

    def embed_query(self, input: list[str]) -> list[Array]:  # noqa: A002
        """Return the vectors of queries."""
        return list(vectors(self.encoder, input, "query"))

    @staticmethod
    def name() -> str:
        """Return the name in Chroma's registry."""
        return "minibert"

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma stores: the arguments, with the fingerprint of the model."""
        return {**self._config, "fingerprint": self.encoder.fingerprint}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "MinibertEmbeddingFunction":
        """Return the function that a stored configuration describes."""
        return MinibertEmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise ValueError if the new configuration gives other vectors than the stored ones."""
        for key in ("fingerprint", "truncate_dim"):
            if old_config[key] != new_config[key]:
                raise ValueError(
                    f"{key} must be that of the stored vectors, {old_config[key]!r}; the new function has "
                    f"{new_config[key]!r}. Store the vectors again in a new collection."
                )

    def default_space(self) -> str:
        """Return the name of the model's similarity in Chroma. Chroma has no Manhattan distance."""
        return _SPACES.get(self.encoder.similarity_fn_name, "l2")
