"""A backend for BERTopic: ``BERTopic(embedding_model=MinibertBackend(encoder))``.

BERTopic does not accept an encoder itself. It knows other libraries by the names of their types. For an object that it
does not know, it loads a model of its own with PyTorch, and gives no error.
"""

from minibert.integrations.common import Backend, installed

with installed("bertopic"):
    from bertopic.backend import BaseEmbedder


class MinibertBackend(Backend, BaseEmbedder):
    """A :class:`~minibert.integrations.common.Backend` that BERTopic accepts."""
