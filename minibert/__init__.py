"""BERT sentence vectors on numpy: what sentence-transformers returns, without PyTorch."""

from minibert.config import BertConfig

__version__ = "0.1.0.dev0"

__all__ = ["BertConfig", "__version__"]
