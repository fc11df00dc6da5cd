"""Components for Haystack: one embeds documents, one embeds queries.

Haystack loads saved pipelines from trusted modules only. For a pipeline with these components, pass
``allowed_modules=["minibert.integrations.haystack"]`` to ``Pipeline.loads`` or ``Pipeline.load``.
"""

import dataclasses
from typing import Any

from minibert.encoder import SentenceEncoder
from minibert.integrations.common import installed, vectors

with installed("haystack-ai"):
    from haystack import Document, component


class _Embedder:
    """What both components are made with; a saved pipeline has these arguments.

    Args:
        model: A local folder, or a hub repo id. None is the built-in model.
        revision: Branch, tag or commit of the hub repo.
        truncate_dim: Number of dimensions that vectors are truncated to.
    """

    def __init__(self, model: str | None = None, revision: str | None = None, truncate_dim: int | None = None) -> None:
        self.model, self.revision, self.truncate_dim = model, revision, truncate_dim
        self._encoder: SentenceEncoder | None = None

    def warm_up(self) -> None:
        """Load the model, unless it is loaded. Haystack calls this method before the first run."""
        self._loaded()

    def _loaded(self) -> SentenceEncoder:
        if self._encoder is None:
            self._encoder = SentenceEncoder(self.model, revision=self.revision, truncate_dim=self.truncate_dim)
        return self._encoder


@component
class MinibertTextEmbedder(_Embedder):
    """The vector of ``encode_query`` of a text."""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Return the vector as ``embedding``."""
        return {"embedding": vectors(self._loaded(), [text], "query")[0].tolist()}


@component
class MinibertDocumentEmbedder(_Embedder):
    """The vectors of ``encode_document`` of the contents of documents."""

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents with their vectors as ``documents``. No content counts as an empty text."""
        embeddings = vectors(self._loaded(), [document.content or "" for document in documents], "document").tolist()
        return {"documents": [dataclasses.replace(d, embedding=v) for d, v in zip(documents, embeddings, strict=True)]}
