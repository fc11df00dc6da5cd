"""A backend for KeyBERT: ``KeyBERT(model=MinibertBackend(encoder))``.

KeyBERT does not accept an encoder itself. It knows other libraries by the names of their types. For an object that it
does not know, it loads a model of its own with PyTorch, and gives no error.
"""

from collections.abc import Sequence

from minibert.encoder import SentenceEncoder
from minibert.integrations.common import installed
from minibert.typing import Array, Float

with installed("keybert"):
    from keybert.backend import BaseEmbedder


class MinibertBackend(BaseEmbedder):
    """The vectors of ``encode``, for documents and words.

    Args:
        encoder: The model.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__(embedding_model=encoder)

    def embed(self, documents: Sequence[str], verbose: bool = False) -> Float[Array, "n D"]:
        """Return the vectors of documents or words. If ``verbose``, show a progress bar."""
        return self.embedding_model.encode(documents, show_progress_bar=verbose)
