"""Make every encoder an ``Embeddings`` of LangChain for ``isinstance``: ``import minibert.integrations.langchain``.

An encoder has LangChain's methods without this module. It is registered when it is made, if LangChain was imported
before. This module is for the other order.
"""

from minibert.encoder import SentenceEncoder
from minibert.integrations.common import installed

with installed("langchain-core"):
    from langchain_core.embeddings import Embeddings

Embeddings.register(SentenceEncoder)
