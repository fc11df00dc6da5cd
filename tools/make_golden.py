# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0",
#   "transformers==5.23.0",
#   "sentence-transformers==6.2.0",
#   "sentencepiece==0.2.1",
#   "protobuf",
# ]
# ///
"""Write tests/golden with transformers and sentence-transformers. It does not need minibert.

    python tools/make_golden.py [--minilm FOLDER] [--only-builtin]

It makes these files from fixed seeds:

* ``<card>/``: a twin for each card of tests/cards.json. A twin is a small model with the card's configuration, casing,
  pooling and length limit, with random weights and a small vocabulary (``repo/``). ``golden.safetensors`` has the
  reference's results: ids, hidden states in float32 and float64, every pooling mode, final vectors. There is one for
  each family of models.
* ``tokenizers/``: tokenizer files in every form that repos have, and the ids of the Unicode corpus below.
* ``builtin.safetensors``: the vectors and ids of a set of texts, from the model in minibert/builtin. With
  ``--only-builtin``, the tool writes only this file.
* ``all-MiniLM-L6-v2.safetensors``, with ``--minilm``: the same from the real weights in FOLDER.

The metadata of every file says how it was made. The values are the same in each run; the order of the metadata is not.
If a value changes, the commit must say why.
"""

import argparse
import json
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from repo_tokenizers import SPECIAL, dump, word_pieces, write_tokenizer, write_unigram
from repos import CARDS, FAMILIES, write_layout, write_modules
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
BUILTIN = Path(__file__).parent.parent / "minibert" / "builtin"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PROMPT = "query: "

TEXTS = {
    "en": ("A man is playing a guitar.", "", "The cat, the hat: 42!", "No", "Naïve café owners aren't [SEP] happy"),
    "de": ("Ein Mann spielt Gitarre.", "", "Die Größe der Straße: 42!", "Äpfel", "Über Öl und ÜBEL [SEP] im Süden"),
    "marked": (
        "A man is playing a guitar.",
        "",
        "Naïve <pad> café <mask> Ö [PAD]! 日ﬁ😀",
        "<pad>no<pad><pad> man <pad> [MASK] cat<pad>",
        "the </s> cat <unk> hat [SEP]",
    ),
}

#: Texts for which tokenizers differ: casing, composed and decomposed accents, scripts, invisible characters.
UNICODE = (
    "",
    "   ",
    "Hello, World!",
    "hello world",
    "HELLO   WORLD\t\n tabs and newlines \r\n",
    "Café naïve résumé coöperate Ångström",
    unicodedata.normalize("NFD", "Café naïve résumé coöperate Ångström"),
    "Straße STRASSE ẞ ß Übergröße Öl ÄRGER",
    unicodedata.normalize("NFD", "Straße Übergröße Öl ÄRGER"),
    "İstanbul ISTANBUL ıstanbul",
    "ΑΒΓ αβγ ΣΊΣΥΦΟΣ σίσυφος",
    "Привет, МИР! ёлка Ёлка й",
    "Tiếng Việt có dấu thanh điệu",
    "中文分词测试",
    "日本語のテキスト、ひらがなとカタカナ。",
    "한국어 문장입니다",
    unicodedata.normalize("NFD", "한국어 문장입니다"),
    "mixed 中文 and English文字mixed",
    "𠀀𠀁 㐀 豈更 extension ideographs",
    "مرحبا بالعالم",
    "مُحَمَّد with vowel marks",
    "שלום עולם",
    "שָׁלוֹם with points",
    "हिन्दी में एक वाक्य",
    "ภาษาไทยไม่มีช่องว่าง",
    "emoji 😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️",
    "full width ＡＢＣ１２３ and half ｱｲｳ",
    "ligatures ﬁ ﬂ ﬀ and ½ ² ™ ℃ Ⅷ",
    "math 𝐀𝑏𝒞 ∑∫√ ≤ ≥ ± × ÷",
    "currency € £ ¥ $ ¢ ₿",
    "quotes “double” ‘single’ «guillemets» „unten“ ‹x›",
    "dashes - – — ― − ‐",
    "dots... … · • ‥",
    "zero\u200bwidth\u200cjoin\u200der\u2060word\ufeffbom",
    "soft\u00adhyphen and no\u00a0break\u202fspace\u3000ideographic",
    "bidi \u202eoverride\u202c \u2066isolate\u2069",
    "control \x00nul \x07bell \x1bescape \x7fdelete \x85next",
    "replacement \ufffd character",
    "line\u2028separator paragraph\u2029separator",
    "private \ue000 use, noncharacter \uffff, last \U0010ffff",
    "tag \U000e0041 characters, variation\ufe0e selectors\ufe0f",
    "zalgo h\u0335\u0321e\u0338\u0322l\u0337\u0328l\u0336\u0327o\u0334\u0324",
    "a\u0301\u0302\u0303\u0304\u0305 many marks",
    "\u0301 starts with a mark",
    "don't can't won't it's 'tis rock'n'roll",
    "e-mail: someone@example.org, https://example.org/path?q=1&r=2#x",
    "C++ C# .NET node.js snake_case kebab-case camelCase",
    "1,234.56 3.14 1e-12 50% #1 @2 &3 *4 (5) [6] {7} <8> |9| ~10 ^11 `12 \\13 /14",
    "x" * 100,
    "x" * 101,
    "short " + "y" * 101 + " after",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "a[SEP]b [sep] [ SEP ] [MASK]x",
    "<s> </s> <pad> <unk> <mask> in another tokenizer",
    "##ing ##s piece-like ##",
    "NEW_TOKEN new_token [extra] added",
    "trailing space ",
    " leading space",
    "a",
    "A",
    "ǅ ǆ Ǆ titlecase digraphs",
    "ﷺ single ligature",
    "ſ long s, K kelvin, Å angstrom, µ micro, Ω ohm",
    "Ǻ Ệ ṩ stacked; ñ Ñ ç Ç ø Ø ł Ł đ Đ æ Æ œ Œ þ Þ ð Ð",
    "１２３ ٣٤٥ ४५६ 〇一二三 ⅫⅨ digits",
    "ab cd" * 40,
)

LONG = {
    "en": "the cat and a man play the guitar in the hat " * 60,
    "de": "Ein Mann und die Größe der Straße im Süden " * 75,
    "marked": "the cat <pad> and a man [PAD] play the guitar in the <mask> hat " * 40,
}


def main() -> None:
    """Write all golden files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 with its real weights")
    parser.add_argument("--only-builtin", action="store_true", help="write only the file of the built-in model")
    options = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    write_vectors(BUILTIN, "builtin")
    if options.only_builtin:
        return
    for seed, name in enumerate(CARDS, 1000):
        write_twin(name, CARDS[name], seed)
    for seed, name in enumerate(FAMILIES, 2000):
        if "twin" in FAMILIES[name]:
            write_twin(name, FAMILIES[name], seed)
    write_tokenizers()
    if options.minilm is not None:
        write_vectors(options.minilm, "all-MiniLM-L6-v2")


# --- twins -----------------------------------------------------------------------------------------------------------


def write_twin(name: str, card: dict[str, Any], seed: int) -> None:
    """Write the small model of a card, and the reference's results with it."""
    repo = GOLDEN / name / "repo"
    shutil.rmtree(GOLDEN / name, ignore_errors=True)
    repo.mkdir(parents=True)
    language = card["language"]
    texts = [*TEXTS[language], LONG[language]]
    config = AutoConfig.for_model(card.get("model_type", "bert"), **{**card["config"], **card["twin"]})
    if "tokenizer" in card:
        lower = card["do_lower_case"]
        config.vocab_size = write_tokenizer(repo, card["tokenizer"], [*texts, PROMPT], lower=lower)
        write_modules(repo, card, config.hidden_size)
        tokenizer = AutoTokenizer.from_pretrained(repo)
        limit = card["max_seq_length"]
        texts[-1:] = [*(text_of(tokenizer, LONG[language], limit + more) for more in (0, 1)), LONG[language]]
    else:
        vocabulary = word_pieces([*texts, PROMPT], lower=card["do_lower_case"])
        config.vocab_size = len(vocabulary)
        write_layout(repo, card, config.hidden_size, vocabulary)
    random_model(config, seed).save_pretrained(repo)

    arrays = reference(repo, texts, short=len(TEXTS[language]))
    metadata = {**provenance(f"random weights, seed {seed}"), "texts": json.dumps(texts), "prompt": PROMPT}
    save_file(arrays, GOLDEN / name / "golden.safetensors", metadata)


def text_of(tokenizer: Any, text: str, tokens: int) -> str:
    """Return the beginning of a text that has so many tokens, with special tokens."""
    lengths = (len(tokenizer(text[:end])["input_ids"]) for end in range(len(text)))
    return text[: next(end for end, length in enumerate(lengths) if length == tokens)]


def random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return a model whose activations are as large as in a trained model, so that a wrong formula is visible."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 and "embeddings" not in name else 0.3
            parameter.copy_(torch.randn_like(parameter) * scale)
            if name.lower().endswith(("layernorm.weight", "layer_norm.weight")):
                parameter.add_(1.0)
    return model


def reference(repo: Path, texts: Sequence[str], short: int) -> dict[str, np.ndarray]:
    """Return the results of transformers and sentence-transformers for ``texts``.

    Each text is computed alone, without padding. The hidden states are only those of the first ``short`` texts.
    """
    encoder = SentenceTransformer(str(repo), device="cpu")
    rows = [encoder.tokenize([text])["input_ids"][0] for text in texts]
    arrays: dict[str, np.ndarray] = {
        "ids": torch.cat(rows).numpy().astype(np.int32),
        "lengths": np.array([len(row) for row in rows], np.int32),
        "embeddings": encoder.encode(list(texts)),
    }
    for dtype in (torch.float32, torch.float64):
        model = AutoModel.from_pretrained(repo, attn_implementation="eager", dtype=dtype).eval()
        kind = str(dtype).removeprefix("torch.")
        with torch.no_grad():
            outputs = [model(row[None], output_hidden_states=True, output_attentions=True) for row in rows]
        arrays[f"hidden.{kind}"] = np.stack(
            [
                torch.cat([output.hidden_states[layer][0] for output in outputs[:short]]).numpy()
                for layer in range(len(outputs[0].hidden_states))
            ]
        )
        arrays[f"attention.{kind}"] = outputs[0].attentions[-1][0].numpy()
        if "pooler_output" in outputs[0]:
            arrays[f"pooler.{kind}"] = torch.cat([output.pooler_output for output in outputs]).numpy()
        for mode in MODES:
            arrays[f"pooled.{mode}.{kind}"] = np.concatenate(
                [pooled(mode, row, output.last_hidden_state) for row, output in zip(rows, outputs, strict=True)]
            )
        without_prompt = SentenceTransformer(str(repo), device="cpu", model_kwargs={"dtype": dtype})
        without_prompt.set_pooling_include_prompt(False)
        arrays[f"prompt_excluded.{kind}"] = without_prompt.encode(list(texts), prompt=PROMPT, batch_size=1)
    return arrays


def pooled(mode: str, ids: torch.Tensor, hidden: torch.Tensor) -> np.ndarray:
    """Return sentence-transformers' pooling of one text."""
    features = {"token_embeddings": hidden, "attention_mask": torch.ones_like(ids)[None]}
    return Pooling(hidden.shape[-1], pooling_mode=mode)(features)["sentence_embedding"].numpy()


# --- tokenizers ------------------------------------------------------------------------------------------------------


def write_tokenizers() -> None:
    """Write tokenizer files in every form, and transformers' ids of the Unicode corpus."""
    root = GOLDEN / "tokenizers"
    shutil.rmtree(root, ignore_errors=True)
    vocabulary = unicode_vocabulary()
    bert = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}

    def variant(name: str) -> Path:
        (root / name).mkdir(parents=True)
        dump(root / name / "config.json", {"model_type": "bert", "architectures": ["BertModel"]})
        return root / name

    def with_vocab(name: str, config: dict[str, Any] | None) -> Path:
        folder = variant(name)
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8")
        if config is not None:
            dump(folder / "tokenizer_config.json", config)
        return folder

    def with_json(name: str, config: dict[str, Any], *, lowercase: bool) -> Path:
        folder = variant(name)
        backend = bert_backend(vocabulary, lowercase=lowercase)
        backend.enable_truncation(16)
        backend.enable_padding(length=16)
        backend.save(str(folder / "tokenizer.json"), pretty=False)
        dump(folder / "tokenizer_config.json", config)
        return folder

    with_vocab("vocab", None)
    with_vocab("vocab-cased", {**bert, "do_lower_case": False, "strip_accents": False})
    with_vocab("vocab-cased-stripped", {**bert, "do_lower_case": False, "strip_accents": True})
    with_vocab("vocab-lower-accents", {**bert, "do_lower_case": True, "strip_accents": False})
    with_vocab("vocab-no-chinese", {**bert, "tokenize_chinese_chars": False})
    with_vocab("vocab-left", {**bert, "truncation_side": "left"})
    added = with_vocab("vocab-added", {**bert, "additional_special_tokens": ["[extra]"]})
    dump(added / "added_tokens.json", {"NEW_TOKEN": len(vocabulary), "[extra]": len(vocabulary) + 1})
    dump(
        added / "special_tokens_map.json",
        {
            "cls_token": {
                "content": "[CLS]",
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            }
        },
    )
    decoder = {
        str(vocabulary.index(token)): {
            "content": token,
            "lstrip": token == "[MASK]",
            "normalized": False,
            "special": True,
        }
        for token in SPECIAL
    }
    decoder[str(len(vocabulary))] = {"content": "new_token", "normalized": True, "special": False}
    with_vocab("vocab-decoder", {**bert, "added_tokens_decoder": decoder})
    with_json("json-lower", {**bert, "do_lower_case": True}, lowercase=True)
    with_json("json-cased-file-lower-default", dict(bert), lowercase=False)
    with_json("json-lower-file-cased-config", {**bert, "do_lower_case": False}, lowercase=True)
    with_json(
        "json-as-is", {**bert, "tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]"}, lowercase=False
    )
    unigram = variant("unigram")
    write_unigram(unigram, UNICODE)
    dump(unigram / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512})

    arrays = {}
    for folder in sorted(root.iterdir()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for limit in (512, 12):
            rows = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in UNICODE]
            arrays[f"{folder.name}.{limit}.ids"] = np.array([i for row in rows for i in row], np.int32)
            arrays[f"{folder.name}.{limit}.lengths"] = np.array([len(row) for row in rows], np.int32)
    metadata = {**provenance("AutoTokenizer, truncation=True"), "texts": json.dumps(UNICODE)}
    save_file(arrays, root / "golden.safetensors", metadata)


def unicode_vocabulary() -> list[str]:
    """Return a vocabulary with most characters of the corpus, cased and uncased, but not all of them."""
    forms = [form for text in UNICODE for form in (text, text.lower(), unicodedata.normalize("NFD", text.lower()))]
    characters = sorted({c for text in forms for c in text if c.isprintable() and not c.isspace()})
    known = [c for i, c in enumerate(characters) if i % 11]
    words = ["hello", "Hello", "world", "World", "the", "full", "##ing", "##world", "strasse", "Straße", "##ße", "中文"]
    return [*SPECIAL, *known, *(f"##{c}" for c in known if c.isalnum()), *words]


def bert_backend(vocabulary: Sequence[str], *, lowercase: bool) -> tokenizers.Tokenizer:
    """Return a BERT tokenizer like those in the tokenizer.json files of repos."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    backend.add_special_tokens(list(SPECIAL))
    return backend


# --- real weights ----------------------------------------------------------------------------------------------------


def write_vectors(folder: Path, name: str) -> None:
    """Write the vectors and ids of real weights."""
    texts = [text for text in UNICODE if text.strip()][::3]
    texts += [*TEXTS["en"], *TEXTS["de"], LONG["en"], "Semantic search finds passages by meaning, not by words."]
    encoder = SentenceTransformer(str(folder), device="cpu")
    double = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": torch.float64, "attn_implementation": "eager"}
    )
    rows = [encoder.tokenize([text])["input_ids"][0].tolist() for text in UNICODE]
    arrays = {
        "embeddings.float32": encoder.encode(texts),
        "embeddings.float64": np.stack([double.encode(text) for text in texts]),
        "unicode.ids": np.array([i for row in rows for i in row], np.int32),
        "unicode.lengths": np.array([len(row) for row in rows], np.int32),
    }
    metadata = {
        **provenance(name),
        "texts": json.dumps(texts),
        "unicode": json.dumps(UNICODE),
    }
    save_file(arrays, GOLDEN / f"{name}.safetensors", metadata)


# --- files -----------------------------------------------------------------------------------------------------------


def provenance(model: str) -> dict[str, str]:
    """Return metadata that says how the numbers of a file were made."""
    modules: Iterable[Any] = (torch, transformers, sentence_transformers, tokenizers)
    return {
        "command": "python tools/make_golden.py",
        "model": model,
        **{module.__name__: module.__version__ for module in modules},
    }


if __name__ == "__main__":
    main()
