"""Adapters for frameworks that ask for a class of their own. docs/integrations.md shows how to use each.

| module | what it has | for |
|---|---|---|
| ``bertopic`` | ``MinibertBackend`` | ``BERTopic(embedding_model=...)`` |
| ``chroma`` | ``MinibertEmbeddingFunction`` | the embedding function of a Chroma collection |
| ``haystack`` | ``MinibertTextEmbedder``, ``MinibertDocumentEmbedder`` | components of a Haystack pipeline |
| ``keybert`` | ``MinibertBackend`` | ``KeyBERT(model=...)`` |
| ``lancedb`` | ``MinibertEmbeddings`` | the embedding function of a LanceDB table |
| ``langchain`` | ``isinstance(encoder, Embeddings)`` | LangChain, if it is imported after the first encoder was made |
| ``llama_index`` | ``MinibertEmbedding`` | the embedding model of a LlamaIndex index |
| ``mteb`` | ``MinibertModel`` | ``mteb.evaluate`` |

Each module imports its framework. Nothing else in minibert imports them, and no framework is a dependency.
"""
