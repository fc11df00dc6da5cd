"""Model repos from the cards in tests/cards.json: the files besides the weights, and full-size seeded models.

make_golden.py, accuracy.py and the reference tests use it. Only the seeded models need torch and transformers. The
cards of other families than BERT name their tokenizer's class; their tokenizers are in repo_tokenizers.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from repo_tokenizers import SPECIAL, dump, write_tokenizer

_FILE = json.loads((Path(__file__).parent.parent / "tests" / "cards.json").read_text("utf-8"))
CARDS, FAMILIES = _FILE["cards"], _FILE["families"]


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
    write_modules(repo, card, hidden_size)


def write_modules(repo: Path, card: dict[str, Any], hidden_size: int, *after: str) -> None:
    """Write sentence-transformers' own files: the limit, and the modules: Pooling, and the classes ``after`` it.

    A Dense module maps to 512 dimensions, with tanh and seeded weights.
    """
    dump(repo / "sentence_bert_config.json", {"max_seq_length": card["max_seq_length"], "do_lower_case": False})
    folders = ["", *(f"{number}_{kind}" for number, kind in enumerate(("Pooling", *after), 1))]
    dump(
        repo / "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": folder, "type": f"sentence_transformers.models.{kind}"}
            for idx, (kind, folder) in enumerate(zip(("Transformer", "Pooling", *after), folders, strict=True))
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
    if "prompts" in card:
        dump(repo / "config_sentence_transformers.json", {"prompts": card["prompts"], "default_prompt_name": None})
    for kind, folder in zip(after, folders[2:], strict=True):
        (repo / folder).mkdir(exist_ok=True)
        if kind == "Dense":
            _write_dense(repo / folder, hidden_size, 512)


def _write_dense(folder: Path, inputs: int, outputs: int) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    config = {"in_features": inputs, "out_features": outputs, "bias": True}
    dump(folder / "config.json", {**config, "activation_function": "torch.nn.modules.activation.Tanh"})
    weight = rng.standard_normal((outputs, inputs)) * inputs**-0.5
    arrays = {"linear.weight": weight, "linear.bias": 0.1 * rng.standard_normal(outputs)}
    save_file({name: array.astype(np.float32) for name, array in arrays.items()}, folder / "model.safetensors")


def write_seeded_repo(
    repo: Path, card_name: str, vocabulary: Sequence[str] | None = None, seed: int = 0, layers: int | None = None
) -> Path:
    """Write a card's model at full size, initialised by transformers from a seed, and return ``repo``.

    With ``layers``, it has only so many layers.

    A card of another family than BERT has a small vocabulary: its table of word embeddings could have a gigabyte. Its
    biases, norms and biases by distance are random, too: transformers begins with zeros and ones.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    repo.mkdir(parents=True, exist_ok=True)
    card = (CARDS | FAMILIES)[card_name]
    config = AutoConfig.for_model(card.get("model_type", "bert"), **card["config"])
    if layers is not None:
        config.num_hidden_layers = layers
    if card_name in FAMILIES:
        texts = seeded_texts()
        config.vocab_size = write_tokenizer(repo, card["tokenizer"], texts, lower=card["do_lower_case"])
        write_modules(repo, card, config.hidden_size, *card.get("modules", ()))
    else:
        write_layout(repo, card, config.hidden_size, vocabulary or full_vocabulary(config.vocab_size))
    torch.manual_seed(seed)
    model = AutoModel.from_config(config)
    if card_name in FAMILIES:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 or "relative_attention_bias" in name:
                    parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 1.0))
    model.save_pretrained(repo)
    return repo


def seeded_texts() -> list[str]:
    """Return the texts for which the tokenizers of :func:`write_seeded_repo` are made."""
    return made_up_texts(full_vocabulary(5_000), 300, 24)


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
