"""Loading a repo as a whole: its files must fit each other, and a tokenizer that cannot be used is refused."""

import json
import re

import numpy as np
import pytest
from support import copy_twin, edit_json, edit_weights

from minibert import SentenceEncoder
from minibert.errors import ModelFileError, TokenizerError

CONFIG = "tokenizer_config.json"
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "cat": 5}


@pytest.fixture
def repo(tmp_path):
    """Return a copy of the smallest twin, whose embedding table has 80 rows."""
    return copy_twin(tmp_path)


def write_tokenizer(repo, **changes):
    """Replace vocab.txt by a tokenizer.json of six words, with changes."""
    (repo / "vocab.txt").unlink()
    whole = {"version": "1.0", "model": {"type": "WordPiece", "vocab": VOCABULARY}, **changes}
    (repo / "tokenizer.json").write_text(json.dumps(whole), "utf-8")


# ---------------------------------------------------------------- tokenizer and embedding table


def test_vocabulary_beyond_the_table(repo):
    """A vocabulary with an id that the embedding table lacks is refused at load, with both numbers."""
    with (repo / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("one\ntwo\n")

    with pytest.raises(
        TokenizerError, match=rf"^{re.escape(str(repo))}: the tokenizer's ids .* vocab_size = 80; .* 81\."
    ):
        SentenceEncoder(repo)


def test_added_token_beyond_the_table(repo):
    """An added token counts like the vocabulary's own."""
    edit_json(repo / CONFIG, added_tokens_decoder={"80": {"content": "[NEW]", "special": True}})

    with pytest.raises(TokenizerError, match=r"vocab_size = 80; they go up to 80\."):
        SentenceEncoder(repo)


def test_special_token_beyond_the_table(repo):
    """A special token that the vocabulary lacks would get a new id, which the table does not have."""
    edit_json(repo / CONFIG, cls_token="[BEGIN]")  # noqa: S106
    edit_json(repo / "special_tokens_map.json", cls_token="[BEGIN]")  # noqa: S106

    with pytest.raises(TokenizerError, match=r"vocab_size = 80; they go up to 80\."):
        SentenceEncoder(repo)


def test_table_beyond_the_vocabulary(repo):
    """A table with more rows than words, padded to a round number, is fine."""
    (repo / "vocab.txt").write_text("\n".join(VOCABULARY), "utf-8")

    assert np.isfinite(SentenceEncoder(repo).encode(["cat"])).all()


# ---------------------------------------------------------------- unusable tokenizers


def test_no_tokenizer(repo):
    """A repo without a tokenizer is refused, with the names that were looked for."""
    (repo / "vocab.txt").unlink()

    with pytest.raises(TokenizerError, match=r"holds no tokenizer: it has neither tokenizer\.json nor vocab\.txt"):
        SentenceEncoder(repo)


@pytest.mark.parametrize("name", ["AlbertTokenizer", "BertJapaneseTokenizer", "evil.Tokenizer", ["BertTokenizer"], 1])
def test_tokenizer_class_that_is_not_implemented(repo, name):
    """Another tokenizer class is refused by its name, with those that are implemented (T1)."""
    edit_json(repo / CONFIG, tokenizer_class=name)

    with pytest.raises(TokenizerError, match=r"tokenizer_class .* is not implemented; minibert knows BertTokenizer, "):
        SentenceEncoder(repo)


def test_tokenizer_class_of_the_model(repo):
    """Where tokenizer_config.json names no class, that of config.json counts."""
    edit_json(repo / CONFIG, tokenizer_class=...)
    edit_json(repo / "config.json", tokenizer_class="AlbertTokenizer")

    with pytest.raises(TokenizerError, match="tokenizer_class 'AlbertTokenizer' is not implemented"):
        SentenceEncoder(repo)


@pytest.mark.parametrize("name", [CONFIG, "special_tokens_map.json", "added_tokens.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000])
def test_file_that_is_no_object(repo, name, content):
    """A tokenizer file that is not JSON, no object, or ambiguous is refused by its name."""
    (repo / name).write_text(content, "utf-8")

    with pytest.raises(TokenizerError, match=rf"{re.escape(name)}\b"):
        SentenceEncoder(repo)


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation_side": "middle"},
        {"truncation_side": ["left"]},
        {"unk_token": "[NONE]"},
        {"pad_token": 5},
        {"mask_token": {"text": "[MASK]"}},
        {"cls_token": None, "sep_token": {"content": None}},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": {"content": "[NEW]"}}},
        {"added_tokens_decoder": {"7": 7}},
        {"additional_special_tokens": [1]},
        {"strip_accents": "no"},
        {"do_lower_case": {}},
    ],
    ids=str,
)
def test_malformed_config(repo, changes):
    """A value that cannot be used in tokenizer_config.json is a TokenizerError that names the folder."""
    (repo / "special_tokens_map.json").unlink()
    edit_json(repo / CONFIG, **changes)

    with pytest.raises(TokenizerError, match=re.escape(str(repo))):
        SentenceEncoder(repo)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": []},
        {"model": {}},
        {"model": {"vocab": 5}},
        {"model": {"vocab": []}},
        {"model": {"vocab": {"[UNK]": -1}}},
        {"model": {"vocab": {"[UNK]": "0"}}},
        {"model": {"vocab": {"[UNK]": 2**40}}},
        {"added_tokens": 5},
        {"added_tokens": [{"id": 1}]},
        {"added_tokens": [{"content": "x"}]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast", "XLMRobertaTokenizer"])
def test_malformed_tokenizer(repo, name, changes):
    """A value that cannot be used in tokenizer.json is a TokenizerError that names the folder, in every class."""
    write_tokenizer(repo, **changes)
    edit_json(repo / CONFIG, tokenizer_class=name)

    with pytest.raises(TokenizerError, match=re.escape(str(repo))):
        SentenceEncoder(repo)


def test_post_processor_that_splits_the_text(repo):
    """A post-processor that puts a special token in the middle leaves no room to cut a text, and is refused."""
    text, cls = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    tokens = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
    template = {"type": "TemplateProcessing", "single": [text, cls, text], "pair": [cls], "special_tokens": tokens}
    words = {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"}
    write_tokenizer(repo, post_processor=template, model=words)
    edit_json(repo / CONFIG, tokenizer_class="PreTrainedTokenizerFast")

    with pytest.raises(TokenizerError, match=rf"{re.escape(str(repo))}: .*must keep a text's tokens together"):
        SentenceEncoder(repo)


@pytest.mark.parametrize("truncation", [None, "left", 1, [], {}])
def test_truncation_that_says_nothing(repo, truncation):
    """A truncation block that names no side is passed over (T4)."""
    write_tokenizer(repo, truncation=truncation)

    assert SentenceEncoder(repo).encode("cat").shape == (16,)


@pytest.mark.parametrize("direction", [None, "Middle", 1])
def test_truncation_to_no_side(repo, direction):
    """A truncation block whose side is none is refused."""
    write_tokenizer(repo, truncation={"direction": direction})

    with pytest.raises(TokenizerError, match='truncation_side must be "left" or "right"; it is'):
        SentenceEncoder(repo)


def test_vocabulary_that_is_no_text(repo):
    """A vocab.txt that is not UTF-8 is a TokenizerError."""
    (repo / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe\n")

    with pytest.raises(TokenizerError, match=re.escape(str(repo))):
        SentenceEncoder(repo)


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors", "1_Pooling/config.json"])
def test_file_missing(repo, name):
    """A repo that lacks one of its files is refused by one documented error, which names the file or its folder."""
    (repo / name).unlink()

    with pytest.raises(ModelFileError, match=re.escape(str((repo / name).parent))):
        SentenceEncoder(repo)


def test_weights_are_checked_at_load(repo):
    """Weights that do not fit are refused by the constructor, not by the first text."""
    edit_weights(
        repo / "model.safetensors", lambda arrays: {name: a for name, a in arrays.items() if "query" not in name}
    )

    with pytest.raises(ModelFileError, match=r"missing: encoder\.layer\.0\.attention\.self\.query\.bias"):
        SentenceEncoder(repo)


# ---------------------------------------------------------------- tokenizer and limit


def test_limit_below_the_special_tokens(repo):
    """A limit that leaves no room for [CLS] and [SEP] is refused at load, with both numbers."""
    edit_json(repo / "sentence_bert_config.json", max_seq_length=1)

    with pytest.raises(ModelFileError, match=r"room for the 2 special tokens around a text; it is 1"):
        SentenceEncoder(repo)
