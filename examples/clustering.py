"""Sort sentences into groups by meaning, with scikit-learn.

    pip install scikit-learn
    python examples/clustering.py

A SentenceEncoder is a transformer of scikit-learn. It can be a step of a Pipeline, before any estimator.
"""

from sklearn.cluster import KMeans
from sklearn.pipeline import make_pipeline

from minibert import SentenceEncoder

SENTENCES = [
    "The orchestra played a symphony by Brahms.",
    "Simmer the onions in butter until they are soft.",
    "The striker scored two goals in the second half.",
    "Snow is expected in the mountains tonight.",
    "She practises the violin for an hour every day.",
    "Bake the bread for forty minutes in a hot oven.",
    "The goalkeeper saved a penalty in the last minute.",
    "Strong winds and heavy rain will reach the coast on Friday.",
    "The band is recording a new album of jazz songs.",
    "Add garlic, salt and pepper to the soup.",
    "Their team won the match and leads the league.",
    "It will be sunny and warm until the weekend.",
]


def main() -> None:
    """Print the sentences of each group."""
    pipeline = make_pipeline(SentenceEncoder(), KMeans(n_clusters=4, n_init=10, random_state=0))
    groups = pipeline.fit_predict(SENTENCES)

    for group in dict.fromkeys(groups):  # in the order of each group's first sentence
        print(f"group {group + 1}")
        for sentence, own in zip(SENTENCES, groups, strict=True):
            if own == group:
                print(f"  {sentence}")

    new = "The midfielder passed the ball to the captain."
    print(f"new sentence: group {pipeline.predict([new])[0] + 1}: {new}")


if __name__ == "__main__":
    main()
