"""Give LangChain a retriever that runs on this machine.

    pip install langchain-core
    python examples/langchain_retriever.py

A SentenceEncoder has the methods of LangChain's Embeddings. Pass it where LangChain asks for an embedding.
"""

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from minibert import SentenceEncoder

DOCUMENTS = [
    Document("Parcels can be tracked on the carrier's page.", metadata={"page": "delivery"}),
    Document("Refunds are paid to your card within ten days.", metadata={"page": "returns"}),
    Document("The shop opens at nine in the morning and closes at six.", metadata={"page": "shop"}),
    Document("To choose a new password, follow the link on the sign-in page.", metadata={"page": "account"}),
]


def main() -> None:
    """Print the best document for each question."""
    store = InMemoryVectorStore(SentenceEncoder())
    store.add_documents(DOCUMENTS)
    retriever = store.as_retriever(search_kwargs={"k": 1})

    for question in ("When do I get my money back?", "Where is my package now?", "I cannot log in."):
        for document in retriever.invoke(question):
            print(f"{question} -> {document.metadata['page']}: {document.page_content}")


if __name__ == "__main__":
    main()
