"""An embedding model for LlamaIndex: ``Settings.embed_model = MinibertEmbedding()``."""

import asyncio
from typing import Any

from minibert.encoder import SentenceEncoder
from minibert.integrations.common import installed, vectors

with installed("llama-index-core"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr


class MinibertEmbedding(BaseEmbedding):
    """The vectors of ``encode_document`` and ``encode_query``, as lists of Python floats.

    Attributes:
        model_name: A local folder, or a hub repo id. None is the built-in model.
        revision: Branch, tag or commit of the hub repo.
        truncate_dim: Number of dimensions that vectors are truncated to.
        embed_batch_size: Number of texts in each call of the encoder. LlamaIndex's own default is 10. The encoder makes
            better batches if it gets many texts.
    """

    model_name: str | None = None
    revision: str | None = None
    truncate_dim: int | None = None
    embed_batch_size: int = 1024
    _encoder: SentenceEncoder = PrivateAttr()

    def __init__(self, model_name: str | None = None, **fields: Any) -> None:
        super().__init__(model_name=model_name, **fields)
        self._encoder = SentenceEncoder(model_name, revision=self.revision, truncate_dim=self.truncate_dim)

    @classmethod
    def class_name(cls) -> str:
        """Return the name in saved configurations."""
        return "MinibertEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return vectors(self._encoder, texts, "document").tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return vectors(self._encoder, [query], "query")[0].tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)
