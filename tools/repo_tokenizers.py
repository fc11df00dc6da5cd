"""Small tokenizers of every class, as files in the form that repos of that class have.

make_golden.py, repos.py and the reference tests use it. Only the Unigram tokenizers need sentencepiece.
"""

import io
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: The special tokens of RoBERTa, XLM-R, CamemBERT and MPNet, by role.
ROBERTA_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def write_tokenizer(folder: Path, kind: str, texts: Sequence[str], *, lower: bool = False) -> int:
    """Write a tokenizer of the class ``kind`` for some texts, and return the size of its vocabulary."""
    return _WRITERS[kind](folder, kind, texts, lower)


def word_pieces(texts: Sequence[str], special: Sequence[str] = SPECIAL, *, lower: bool) -> list[str]:
    """Return a WordPiece vocabulary that covers the texts: characters, some of the words, and pieces of words."""
    if lower:
        texts = [
            "".join(c for c in unicodedata.normalize("NFD", t.lower()) if not unicodedata.combining(c)) for t in texts
        ]
    characters = sorted({c for text in texts for c in text if not c.isspace()})
    words = sorted({word for text in texts for word in text.split() if word.isalpha() and len(word) > 1})
    pieces = sorted({"##" + word[-3:] for word in words if len(word) > 3})
    return [*special, *characters, *("##" + c for c in characters), *words[::2], *pieces]


def byte_pairs(texts: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return RoBERTa's vocabulary for some texts, and the merges that make every other word, from left to right."""
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text) if 1 < len(word) < 9})
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words[::2] for end in range(1, len(word))))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = dict.fromkeys(first + second for first, second in merges)
    return [*special, *sorted(splitter.alphabet()), *pieces, "<mask>"], merges


def _write_word_pieces(folder: Path, kind: str, texts: Sequence[str], lower: bool) -> int:
    is_mpnet = kind == "MPNetTokenizer"
    own = ("<s>", "<pad>", "</s>", "<unk>", "[UNK]")
    vocabulary = [*word_pieces(texts, own, lower=lower), "<mask>"] if is_mpnet else word_pieces(texts, lower=lower)
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8")
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    if is_mpnet:
        special = {**ROBERTA_SPECIAL, "unk_token": "[UNK]"}
    _write_config(folder, kind, do_lower_case=lower, **special)
    return len(vocabulary)


def _write_byte_pairs(folder: Path, kind: str, texts: Sequence[str], _lower: bool) -> int:
    vocabulary, merges = byte_pairs(texts)
    dump(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    _write_config(folder, kind, **ROBERTA_SPECIAL)
    return len(vocabulary)


def _write_unigram(folder: Path, kind: str, texts: Sequence[str], _lower: bool) -> int:
    if kind == "CamembertTokenizer":
        own = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"]
        size = write_unigram(folder, texts, own, first=1, around=("<s>", "</s>"))
    else:
        size = write_unigram(folder, texts)
    _write_config(folder, kind, **ROBERTA_SPECIAL)
    return size


def write_unigram(
    folder: Path,
    texts: Sequence[str],
    own: Sequence[str] = ("<s>", "<pad>", "</s>", "<unk>"),
    first: int = 3,
    around: tuple[str, str] = ("<s>", "</s>"),
) -> int:
    """Write the tokenizer.json of a small Unigram tokenizer with a character map of a few rules; return its size.

    Args:
        folder: It is written here.
        texts: sentencepiece is trained on these texts.
        own: The first pieces of the vocabulary.
        first: The first piece of sentencepiece's vocabulary that follows them.
        around: The tokens around a text.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    rules = folder / "rules.tsv"
    rules.write_text("FF21\t41\nFF22\t42\nFB01\t66 69\n2460\t31\n", "utf-8")
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text.replace("\0", " ").replace("\n", " ") for text in texts if text.strip()),
        model_writer=trained,
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=0.98,
        normalization_rule_tsv=str(rules),
        num_threads=1,
        minloglevel=2,
    )
    rules.unlink()
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    learned = ((piece.piece, piece.score) for piece in proto.pieces[first:])
    pieces = [*((token, 0.0) for token in own), *learned, ("<mask>", 0.0)]
    names = [token for token, _ in pieces]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 3, byte_fallback=False))
    backend.normalizer = tokenizers.normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=" ".join([around[0], "$A", around[1]]), special_tokens=[(token, names.index(token)) for token in around]
    )
    backend.add_special_tokens(list(own))
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    backend.save(str(folder / "tokenizer.json"), pretty=False)
    return len(pieces)


def _write_config(folder: Path, kind: str, **values: Any) -> None:
    dump(folder / "tokenizer_config.json", {**values, "model_max_length": 512, "tokenizer_class": kind})


def dump(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


_WRITERS: dict[str, Callable[[Path, str, Sequence[str], bool], int]] = {
    "BertTokenizer": _write_word_pieces,
    "CamembertTokenizer": _write_unigram,
    "DistilBertTokenizer": _write_word_pieces,
    "MPNetTokenizer": _write_word_pieces,
    "RobertaTokenizer": _write_byte_pairs,
    "XLMRobertaTokenizer": _write_unigram,
}
