"""Move a program from sentence-transformers to minibert: change the import, and keep the lines below it.

    python examples/from_sentence_transformers.py

The import was: from sentence_transformers import SentenceTransformer
"""

import warnings

from minibert import BUILTIN_MODEL
from minibert import SentenceEncoder as SentenceTransformer

SENTENCES = ["A man is eating food.", "Someone is having lunch.", "The sky is blue today."]
MODEL = str(BUILTIN_MODEL)  # a folder; or the name of a model, such as "sentence-transformers/all-MiniLM-L6-v2"


def same_lines(model: SentenceTransformer) -> None:
    """Print what is the same in both."""
    embeddings = model.encode(SENTENCES, batch_size=32, normalize_embeddings=True)
    print("shape:", embeddings.shape, embeddings.dtype)
    print("first numbers:", *(f"{number:.3f}" for number in embeddings[0, :4]))
    similarities = model.similarity(embeddings, embeddings)
    print("similarity:", f"{similarities[0, 1]:.3f}", f"{similarities[0, 2]:.3f}")
    print("shape of a query, cut:", model.encode_query("What does he eat?", truncate_dim=64).shape)
    print("first bits:", model.encode(SENTENCES, precision="ubinary")[0, :4].tolist())


def what_differs(model: SentenceTransformer) -> None:
    """Print what differs: arrays are numpy's, PyTorch's own options are errors, and a cut text is reported."""
    embeddings = model.encode(SENTENCES)
    print("similarity returns:", type(model.similarity(embeddings, embeddings)).__name__)
    try:
        print("convert_to_tensor returns:", type(model.encode(SENTENCES, convert_to_tensor=True)).__name__)
    except ValueError as error:
        print("convert_to_tensor:", error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.encode(["A short text.", "word " * 600])
    print("a long text:", caught[0].message if caught else "is cut, and nothing is said")


if __name__ == "__main__":
    encoder = SentenceTransformer(MODEL)
    same_lines(encoder)
    what_differs(encoder)
