"""An embedding function for LanceDB: ``get_registry().get("minibert").create()``.

LanceDB stores its name and arguments with the table. A program that opens the table again must import this module
first; then the table is searched by text.
"""

from typing import Any

from minibert.encoder import SentenceEncoder
from minibert.integrations.common import installed, opened, vectors
from minibert.typing import Array

with installed("lancedb"):
    from lancedb.embeddings import TextEmbeddingFunction, register
    from pydantic import PrivateAttr


@register("minibert")
class MinibertEmbeddings(TextEmbeddingFunction):
    """The vectors of ``encode_document`` and ``encode_query``.

    Attributes:
        name: A local folder, or a hub repo id. None is the built-in model.
        revision: Branch, tag or commit of the hub repo.
        truncate_dim: Number of dimensions that vectors are truncated to.
        fingerprint: The fingerprint that the model must have. It is among the arguments that LanceDB stores.
    """

    name: str | None = None
    revision: str | None = None
    truncate_dim: int | None = None
    fingerprint: str | None = None
    _encoder: SentenceEncoder = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Load the model. Raise ValueError if it has another fingerprint."""
        super().model_post_init(context)
        self._encoder = opened(self.name, self.revision, self.truncate_dim, self.fingerprint)

    def safe_model_dump(self) -> dict[str, Any]:
        """Return what LanceDB stores: the arguments, with the fingerprint of the model."""
        return {**super().safe_model_dump(), "fingerprint": self._encoder.fingerprint}

    def ndims(self) -> int:
        """Return the number of dimensions of a vector."""
        return self._encoder.get_embedding_dimension()

    def generate_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Array]:
        """Return the vectors of documents."""
        return list(vectors(self._encoder, texts, "document"))

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[Array]:
        """Return the vector of a query, in a list."""
        return list(vectors(self._encoder, self.sanitize_input(query), "query"))
