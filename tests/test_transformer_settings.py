"""sentence_bert_config.json: the limit, and what else it may change about the transformer and its tokenizer."""

import json
import re

import numpy as np
import pytest
from support import copy_twin, edit_json

from minibert import SentenceEncoder
from minibert.errors import ConfigError, TokenizerError
from minibert.repo import TRANSFORMER_CONFIGS, ModelRepo, TransformerSettings

FILE = "sentence_bert_config.json"
SENTINEL = int(1e30)  # what transformers writes where a tokenizer has no limit
TEXT = "The CAT"


@pytest.fixture
def repo(tmp_path):
    """Return a copy of the smallest twin: 512 positions, and no limit but that."""
    copy_twin(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=...)
    (tmp_path / FILE).unlink()
    return tmp_path


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("index", range(len(TRANSFORMER_CONFIGS)))
def test_file_names(repo, index):
    """The first of the seven names that is there is read (L8)."""
    names = [f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert")]
    names += ["sentence_xlm-roberta_config.json", "sentence_xlnet_config.json"]
    for position, name in list(enumerate(names))[index:]:
        edit_json(repo / name, max_seq_length=10 + position)

    assert ModelRepo.open(repo).transformer.max_seq_length == 10 + index


def test_no_file(tmp_path):
    """Without the file nothing is set."""
    assert TransformerSettings.from_folder(tmp_path) == TransformerSettings(None, False, {}, {})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"max_len": 128}, "the keys max_len are unknown"),
        ({"zeta": 1, "alpha": None}, "the keys alpha, zeta are unknown"),
        ({"max_seq_length": 0}, "max_seq_length must be a positive whole number; it is 0"),
        ({"max_seq_length": -1}, "max_seq_length must be"),
        ({"max_seq_length": "128"}, "max_seq_length must be a positive whole number; it is '128'"),
        ({"max_seq_length": 128.0}, "max_seq_length must be"),
        ({"max_seq_length": True}, "max_seq_length must be"),
        ({"model_args": [1]}, r"model_kwargs must be an object; it is \[1\]"),
        ({"processor_kwargs": "x"}, "processor_kwargs must be an object"),
        ({"config_kwargs": 1}, "config_kwargs must be an object"),
        (
            {"model_args": {"quantization_config": {}, "device_map": "auto"}},
            "model_kwargs device_map, quantization_con",
        ),
        ({"model_kwargs": {"subfolder": "x"}}, "model_kwargs subfolder are not implemented"),
        ({"processing_kwargs": {"text": {"padding": True}}}, "processing_kwargs is not implemented"),
        ({"query_length": 32}, "query_length is not implemented"),
        ({"document_length": 180}, "document_length is not implemented"),
        ({"query_expansion": {"token": "[MASK]"}}, "query_expansion is not implemented"),
        ({"transformer_task": "fill-mask"}, "transformer_task must be 'feature-extraction'"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name must be 'token_embeddings'"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config must be"),
    ],
    ids=str,
)
def test_what_could_change_the_vectors_is_refused(repo, values, reason):
    """A key that is unknown, malformed or not implemented is refused by file and key (L7, L9)."""
    edit_json(repo / FILE, **values)

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(repo / FILE))}: {reason}"):
        ModelRepo.open(repo)


@pytest.mark.parametrize(
    "values",
    [
        {"unpad_inputs": True},
        {"processing_kwargs": {}, "query_length": None, "document_length": None, "query_expansion": None},
        {"transformer_task": "feature-extraction", "module_output_name": None, "modality_config": None},
        {"model_args": {"trust_remote_code": True, "torch_dtype": "float16", "attn_implementation": "eager"}},
        {"model_kwargs": {"dtype": "bfloat16", "use_safetensors": False, "add_pooling_layer": False}},
        {"config_args": {"trust_remote_code": True, "output_hidden_states": True}, "tokenizer_args": None},
        {"tokenizer_args": {"trust_remote_code": True, "use_fast": False}, "do_lower_case": False},
    ],
    ids=str,
)
def test_what_cannot_change_the_vectors_is_accepted(repo, values):
    """Empty values, and arguments that concern speed, precision or trust, change nothing (L9, W5)."""
    before = SentenceEncoder(repo).encode(TEXT)
    edit_json(repo / FILE, **values)

    np.testing.assert_array_equal(SentenceEncoder(repo).encode(TEXT), before, strict=True)


@pytest.mark.parametrize("key", ["config_args", "config_kwargs"])
def test_config_arguments(repo, key):
    """They take the place of keys of config.json, under their old name and their new one, and are checked (L9)."""
    edit_json(repo / FILE, **{key: {"hidden_act": "relu"}})
    assert ModelRepo.open(repo).config.hidden_act == "relu"

    edit_json(repo / FILE, **{key: {"is_decoder": True}})
    with pytest.raises(ConfigError, match=r"config\.json: is_decoder"):
        ModelRepo.open(repo)


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs"])
def test_tokenizer_arguments(repo, key):
    """They take the place of keys of tokenizer_config.json, under their old name and their new one (L9)."""
    lower = SentenceEncoder(repo).tokenize([TEXT])["input_ids"]
    edit_json(repo / FILE, **{key: {"do_lower_case": False}})
    cased = SentenceEncoder(repo).tokenize([TEXT])["input_ids"]

    assert (lower == 66).any()  # "cat"
    assert not (cased == 66).any()


def test_do_lower_case(repo):
    """The file can ask for lower case although the tokenizer keeps it (L11)."""
    lower = SentenceEncoder(repo).tokenize([TEXT])["input_ids"]
    edit_json(repo / "tokenizer_config.json", do_lower_case=False)
    edit_json(repo / FILE, do_lower_case=True)

    np.testing.assert_array_equal(SentenceEncoder(repo).tokenize([TEXT])["input_ids"], lower)


def test_do_lower_case_that_is_no_flag(repo):
    """The text "false" is refused: it would count as true."""
    edit_json(repo / FILE, do_lower_case="false")

    with pytest.raises(ConfigError, match="do_lower_case must be true or false; it is 'false'"):
        SentenceEncoder(repo)


# ---------------------------------------------------------------- the limit


@pytest.mark.parametrize(
    ("settings", "tokenizer", "expected"),
    [
        ({"max_seq_length": 2}, ..., 2),
        ({"max_seq_length": 128}, ..., 128),
        ({"max_seq_length": 128}, 64, 128),
        ({"max_seq_length": 512}, 64, 512),
        ({}, 64, 64),
        ({"max_seq_length": None}, 64, 64),
        ({}, 1024, 512),
        ({}, SENTINEL, 512),
        ({}, 1e30, 512),
        ({}, 64.0, 64),
        ({}, None, 512),
        ({}, ..., 512),
        ({"tokenizer_args": {"model_max_length": 32}}, 64, 32),
        ({"tokenizer_args": {"model_max_length": 128}}, 64, 128),
        ({"processor_kwargs": {"model_max_length": 32}, "max_seq_length": 128}, 64, 32),
        ({"processor_kwargs": {"model_max_length": SENTINEL}}, 64, 512),
    ],
)
def test_limit(repo, settings, tokenizer, expected):
    """The file's limit holds; else the tokenizer's, up to the position table (L10)."""
    edit_json(repo / FILE, **settings)
    edit_json(repo / "tokenizer_config.json", model_max_length=tokenizer)

    assert SentenceEncoder(repo).max_seq_length == expected


def test_limit_without_the_file(repo):
    """Without the file the tokenizer's limit holds, under its older name too (L10)."""
    edit_json(repo / "tokenizer_config.json", max_len=40)

    assert SentenceEncoder(repo).max_seq_length == 40


def test_limit_counts_special_tokens(repo):
    """A limit of 5 leaves three tokens of the text (L10)."""
    edit_json(repo / FILE, max_seq_length=5)
    encoder = SentenceEncoder(repo, on_truncate="ignore")

    assert encoder.tokenize(["cat cat cat cat"])["input_ids"].tolist() == [[2, 66, 66, 66, 3]]


@pytest.mark.parametrize(
    ("settings", "stated"),
    [({"max_seq_length": 513}, 513), ({"tokenizer_args": {"model_max_length": 1024}}, 1024)],
)
def test_limit_beyond_the_positions(repo, settings, stated):
    """A stated limit that the position table cannot serve is refused, with both numbers (L10)."""
    edit_json(repo / FILE, **settings)

    with pytest.raises(ConfigError, match=rf"at most max_position_embeddings = 512; it is {stated}"):
        SentenceEncoder(repo)


@pytest.mark.parametrize("limit", [0, -1, True, "512", [512]])
def test_tokenizer_limit_that_is_no_number(repo, limit):
    """A tokenizer's limit must be a positive number."""
    edit_json(repo / "tokenizer_config.json", model_max_length=limit)

    with pytest.raises(TokenizerError, match=r"model_max_length must be a positive number; it is"):
        SentenceEncoder(repo)


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tokenizer", [None, 64, 1024, SENTINEL])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_seq_length": 128},
        {"max_seq_length": None},
        {"tokenizer_args": {"model_max_length": 32}},
        {"max_seq_length": 128, "processor_kwargs": {"model_max_length": 32}},
        None,
    ],
    ids=json.dumps,
)
def test_limit_is_that_of_sentence_transformers(repo, settings, tokenizer):
    """The limit is sentence-transformers', with modules.json and without it (L10)."""
    import sentence_transformers

    if settings is None:
        (repo / "modules.json").unlink()
    edit_json(repo / FILE, **(settings or {"max_seq_length": 77}))
    edit_json(repo / "tokenizer_config.json", model_max_length=... if tokenizer is None else tokenizer)
    peer = sentence_transformers.SentenceTransformer(str(repo), device="cpu")

    assert SentenceEncoder(repo).max_seq_length == peer.max_seq_length
