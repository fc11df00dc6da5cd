"""What the adapters share: the error for a missing framework, the vectors that a store compares, and a backend."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from minibert.encoder import SentenceEncoder
from minibert.typing import Array, Float


@contextlib.contextmanager
def installed(package: str) -> Iterator[None]:
    """Turn the ImportError of a missing framework into one that says what to install.

    Raises:
        ImportError: An import in the ``with`` block failed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"this adapter needs {package}, which cannot be imported ({error}): pip install {package}"
        ) from error


#: The encoders of stores in this process. Chroma makes an embedding function from the stored configuration for each
#: call of ``query`` and ``add``, and LanceDB for each table. Without this, each would load the model.
_OPENED: dict[tuple[str | None, str | None, int | None, str], SentenceEncoder] = {}


def opened(
    name: str | None, revision: str | None, truncate_dim: int | None, fingerprint: str | None
) -> SentenceEncoder:
    """Return the encoder that the configuration of a store names. It stays loaded until the program ends.

    Args:
        name: A local folder, or a hub repo id. None is the built-in model.
        revision: Branch, tag or commit of the hub repo.
        truncate_dim: Number of dimensions that vectors are truncated to.
        fingerprint: The fingerprint of the model that made the stored vectors. None accepts any model.

    Raises:
        ValueError: The model has another fingerprint.
    """
    if fingerprint is not None and (name, revision, truncate_dim, fingerprint) in _OPENED:
        return _OPENED[name, revision, truncate_dim, fingerprint]
    encoder = SentenceEncoder(name, revision=revision, truncate_dim=truncate_dim)
    if fingerprint not in (None, encoder.fingerprint):
        raise ValueError(
            f"the vectors must be searched with the model that made them, with fingerprint {fingerprint[:12]}; "
            f"{'the built-in model' if name is None else repr(name)} has {encoder.fingerprint[:12]}. Load that "
            "model, or store the vectors again with this one."
        )
    _OPENED[name, revision, truncate_dim, encoder.fingerprint] = encoder
    return encoder


def vectors(encoder: SentenceEncoder, texts: Any, kind: Literal["query", "document"]) -> Float[Array, "n D"]:
    """Return the vectors of ``texts`` with the prompt for ``kind``.

    If the model's similarity is the cosine, they have length 1. Then cosine, dot product and distance give the same
    order, and a store may use any of them.
    """
    encode = encoder.encode_query if kind == "query" else encoder.encode_document
    return encode(texts, normalize_embeddings=encoder.similarity_fn_name == "cosine")


class Backend:
    """The vectors of ``encode``, for documents and words: the methods of the backends of BERTopic and KeyBERT.

    Args:
        encoder: The model.
    """

    embedding_model: SentenceEncoder

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__(embedding_model=encoder)  # type: ignore[call-arg]  # the framework's class comes next

    def embed(self, documents: Sequence[str], verbose: bool = False) -> Float[Array, "n D"]:
        """Return the vectors of documents or words. If ``verbose``, show a progress bar."""
        return self.embedding_model.encode(documents, show_progress_bar=verbose)
