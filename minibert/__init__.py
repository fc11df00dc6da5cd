"""BERT sentence vectors on numpy: what sentence-transformers returns, without PyTorch.

    >>> from minibert import SentenceEncoder
    >>> encoder = SentenceEncoder()  # or a folder, or a hub repo id: "sentence-transformers/all-MiniLM-L6-v2"
    >>> vectors = encoder.encode(["A sentence.", "Another one."])

The forward pass is in :mod:`minibert.model`: start reading there.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import NoReturn as _NoReturn

from minibert import instead as _instead
from minibert.bert_model import BertModel
from minibert.config import BertConfig
from minibert.encoder import SentenceEncoder, Truncation
from minibert.files.hub import BUILTIN_MODEL
from minibert.index import SearchIndex
from minibert.quantization import quantize_embeddings

__version__ = "0.1.0.dev0"

__all__ = [
    "BUILTIN_MODEL",
    "BertConfig",
    "BertModel",
    "SearchIndex",
    "SentenceEncoder",
    "Truncation",
    "__version__",
    "quantize_embeddings",
]


if not _TYPE_CHECKING:  # a type checker shall know which names are missing

    def __getattr__(name: str) -> _NoReturn:
        raise _instead.missing("minibert", name, _instead.PACKAGE)
