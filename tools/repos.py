"""Model repos from the cards in tests/cards.json: the files besides the weights, and full-size seeded models.

make_golden.py, accuracy.py and the reference tests use it. Only the seeded models need torch and transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CARDS = json.loads((Path(__file__).parent.parent / "tests" / "cards.json").read_text("utf-8"))["cards"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_layout(repo: Path, card: dict[str, Any], hidden_size: int, vocabulary: Sequence[str]) -> None:
    """Write the files besides the weights, in the layout of sentence-transformers 2, which the cards have."""
    (repo / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8")
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    lower = card["do_lower_case"]
    dump(repo / "special_tokens_map.json", special)
    dump(
        repo / "tokenizer_config.json",
        {
            "do_lower_case": lower,
            **special,
            "tokenize_chinese_chars": True,
            "strip_accents": None if lower else False,
            "model_max_length": 512,
            "tokenizer_class": "BertTokenizer",
        },
    )
    dump(repo / "sentence_bert_config.json", {"max_seq_length": card["max_seq_length"], "do_lower_case": False})
    dump(
        repo / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    modes = {
        "cls": "cls_token",
        "mean": "mean_tokens",
        "max": "max_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    }
    (repo / "1_Pooling").mkdir(exist_ok=True)
    dump(
        repo / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden_size,
            **{f"pooling_mode_{key}": mode == card["pooling_mode"] for mode, key in modes.items()},
        },
    )


def write_seeded_repo(repo: Path, card_name: str, vocabulary: Sequence[str] | None = None, seed: int = 0) -> Path:
    """Write a card's model at full size, initialised by transformers from a seed, and return ``repo``."""
    import torch
    from transformers import BertConfig, BertModel

    card = CARDS[card_name]
    config = BertConfig(**card["config"])
    torch.manual_seed(seed)
    repo.mkdir(parents=True, exist_ok=True)
    BertModel(config).save_pretrained(repo)
    write_layout(repo, card, config.hidden_size, vocabulary or full_vocabulary(config.vocab_size))
    return repo


def full_vocabulary(size: int) -> list[str]:
    """Return a vocabulary of ``size`` tokens: letters, digits, pieces, and random words of three syllables."""
    letters = "abcdefghijklmnopqrstuvwxyzäöüß0123456789"
    first = [*SPECIAL, *".,:;!?'-()", *letters, *letters.upper()[:29], *(f"##{c}" for c in letters)]
    syllables = [c + v for c in "bdfghklmnprstvwz" for v in "aeiou"]
    rest = (a + b + c for a in syllables for b in syllables for c in syllables)
    return [*dict.fromkeys(first), *(next(rest) for _ in range(size - len(dict.fromkeys(first))))]


def made_up_texts(vocabulary: Sequence[str], count: int, longest: int, seed: int = 0) -> list[str]:
    """Return ``count`` texts of up to ``longest`` random words of ``vocabulary``, with capitals and punctuation."""
    rng = np.random.default_rng(seed)
    words = [word for word in vocabulary if word.isalpha() and len(word) > 1]
    texts = []
    for length in rng.integers(1, longest + 1, count):
        chosen = [words[i] for i in rng.integers(0, len(words), length)]
        texts.append(" ".join([chosen[0].capitalize(), *chosen[1:]]) + str(rng.choice([".", "!", "", "?"])))
    return texts


def dump(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
