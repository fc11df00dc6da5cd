"""A backend for KeyBERT: ``KeyBERT(model=MinibertBackend(encoder))``.

KeyBERT does not accept an encoder itself. It knows other libraries by the names of their types. For an object that it
does not know, it loads a model of its own with PyTorch, and gives no error.
"""

from minibert.integrations.common import Backend, installed

with installed("keybert"):
    from keybert.backend import BaseEmbedder


class MinibertBackend(Backend, BaseEmbedder):
    """A :class:`~minibert.integrations.common.Backend` that KeyBERT accepts."""
