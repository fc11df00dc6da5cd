"""The made-up inputs of the tools that measure jobs."""

import json
import random
from pathlib import Path

_WORDS = [
    *("the", "a", "an", "of", "to", "and", "in", "on", "at", "by", "for", "with", "from", "is", "was", "were", "has"),
    *("man", "woman", "child", "dog", "cat", "horse", "bird", "train", "river", "mountain", "city", "street", "house"),
    *("plays", "sings", "reads", "writes", "runs", "walks", "eats", "opens", "closes", "finds", "loses", "old", "red"),
]


def write_records(path: Path, rows: int, *, seed: int = 0, unusable: float = 0.0) -> None:
    """Write JSON lines with a key, a text of 3 to 40 words and a number. A share of the texts is null."""
    draw = random.Random(seed)  # noqa: S311 - texts, not secrets
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            text = " ".join(draw.choices(_WORDS, k=int(3 + 38 * draw.random() ** 3)))
            record = {"key": f"k{row}", "body": None if draw.random() < unusable else text, "n": row}
            file.write(f"{json.dumps(record)}\n")
