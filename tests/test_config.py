"""config.json: the defaults, and that what minibert does not implement is refused by file and field."""

import dataclasses
import json
import re

import pytest

from minibert import BertConfig
from minibert.errors import ConfigError
from minibert.ops import ACTIVATIONS

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)

#: The families, and those of them in which positions begin after the padding id of config.json.
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
KNOWN = ", ".join(FAMILIES)
#: Families of encoders that minibert does not implement.
OTHERS = (
    "albert", "bert-generation", "deberta-v2", "electra", "ernie", "gte", "jina_embeddings_v3", "modernbert", "new",
    "nomic_bert", "qwen3", "t5",
)  # fmt: skip

#: Keys of a config.json, and what is said of them.
LIES = [
    ({"hidden_size": 256, "num_attention_heads": 7}, "hidden_size must be a multiple of num_attention_heads; 256.*7"),
    ({"hidden_size": 8, "num_attention_heads": 12}, "hidden_size must be a multiple of num_attention_heads; 8.*12"),
    ({"pad_token_id": -1}, "pad_token_id must be a whole number of at least 0; it is -1"),
    ({"pad_token_id": 1.0}, "pad_token_id must be a whole number of at least 0; it is 1.0"),
    ({"pad_token_id": 80, "vocab_size": 80}, "pad_token_id must be below vocab_size = 80; it is 80"),
    ({"layer_norm_eps": 0}, "layer_norm_eps must be a positive number; it is 0"),
    ({"layer_norm_eps": -1}, "layer_norm_eps must be a positive number; it is -1"),
    ({"layer_norm_eps": "x"}, "layer_norm_eps must be a positive number; it is 'x'"),
    ({"layer_norm_eps": True}, "layer_norm_eps must be a positive number; it is True"),
    ({"layer_norm_eps": None}, "layer_norm_eps must be a positive number; it is None"),
    ({"hidden_act": "nope"}, "hidden_act 'nope' is not implemented; minibert knows gelu, gelu_10"),
    ({"hidden_act": "prelu"}, "hidden_act 'prelu' is not implemented"),
    ({"hidden_act": None}, "hidden_act must be the name of an activation; it is None"),
    ({"hidden_act": ["gelu"]}, "hidden_act must be the name of an activation; it is .'gelu'"),
    *(({"model_type": other}, f"model_type must be one of {KNOWN}; it is {other!r}, which") for other in OTHERS),
    ({"model_type": None}, "model_type must be"),
    ({"model_type": ["bert"]}, "model_type must be"),
    ({"architectures": ["JinaBertForMaskedLM"]}, "architectures must be a list of Bert classes; it is .'JinaBert"),
    ({"architectures": ["RobertaModel"]}, "architectures must be a list of Bert classes; it is .'RobertaModel'"),
    ({"architectures": ["BertModel", "XLNetModel"]}, "architectures must be"),
    ({"architectures": "BertModel"}, "architectures must be"),
    ({"architectures": 5}, "architectures must be"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type must be.*it is 'relative_key'"),
    ({"position_embedding_type": "relative_key_query"}, "position_embedding_type must be"),
    ({"position_embedding_type": None}, "position_embedding_type must be"),
    ({"is_decoder": True}, "is_decoder and add_cross_attention must be false"),
    ({"add_cross_attention": True}, "is_decoder and add_cross_attention must be false"),
    ({"embedding_size": 128, "hidden_size": 768}, "embedding_size = 128 differs from hidden_size"),
    ({"embedding_size": 128}, "embedding_size = 128 differs from hidden_size"),
]

#: The same for families other than BERT: which families, keys of config.json, and the message.
LIES_OF_FAMILIES = [
    (["roberta"], {"architectures": ["XLMRobertaModel"]}, "architectures must be a list of Roberta classes"),
    (["distilbert"], {"architectures": ["MPNetModel"]}, "architectures must be a list of DistilBert classes"),
    (FAMILIES, {"position_embedding_type": "alibi"}, "position_embedding_type must be"),
    (
        ["mpnet"],
        {"relative_attention_num_buckets": 16},
        "relative_attention_num_buckets must be 32 for .*is 16",
    ),
    (
        ["mpnet"],
        {"relative_attention_num_buckets": 64},
        "relative_attention_num_buckets must be 32 for .*is 64",
    ),
    (["mpnet"], {"relative_attention_num_buckets": None}, "relative_attention_num_buckets must be 32 .* it is None"),
    (ROBERTAS, {"type_vocab_size": 0}, "type_vocab_size must be a whole number of at least 1; it is 0"),
    (ROBERTAS, {"pad_token_id": None}, "pad_token_id must be a whole number of at least 0; it is None"),
    (ROBERTAS, {"pad_token_id": 90, "vocab_size": 90}, "pad_token_id must be below vocab_size = 90; it is 90"),
    (ROBERTAS, {"pad_token_id": 511}, "max_position_embeddings must leave room .* after the padding id 511; it is 512"),
    (["mpnet"], {"max_position_embeddings": 2}, "max_position_embeddings must leave room .* padding id 1; it is 2"),
    (["distilbert"], {"n_heads": 5}, "hidden_size must be a multiple of num_attention_heads; 768.*5"),
    (["distilbert"], {"dim": 0}, "hidden_size must be a whole number of at least 1; it is 0"),
]


@pytest.fixture
def config_file(tmp_path):
    """Return a function that writes a config.json and returns its path."""

    def write(**values):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(values), "utf-8")
        return path

    return write


def test_defaults():
    """Without a key its value is that of the original BERT-base (F)."""
    assert dataclasses.asdict(BertConfig()) == {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "relative_attention_num_buckets": None,
    }


@pytest.mark.reference
@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    """Without a key its value is that of transformers, in each family (F, G3)."""
    import transformers

    peer = transformers.AutoConfig.for_model(family)
    own = dataclasses.asdict(BertConfig.from_dict({"model_type": family}))
    names = {"intermediate_size": "hidden_dim", "hidden_act": "activation"} if family == "distilbert" else {}
    absent = {} if family in {"bert", *ROBERTAS} else {"type_vocab_size": 1}
    absent |= {"layer_norm_eps": 1e-12} if family == "distilbert" else {}
    absent |= {} if family == "mpnet" else {"relative_attention_num_buckets": None}

    assert own == absent | {name: getattr(peer, names.get(name, name)) for name in own if name not in absent}


def test_empty_file_gives_the_defaults(config_file):
    """A config.json without any key stands for the defaults, as in transformers."""
    assert BertConfig.from_file(config_file()) == BertConfig()


def test_file_is_read(config_file):
    """Keys that change the forward pass are read; all others are passed over."""
    config = BertConfig.from_file(
        config_file(hidden_size=24, layer_norm_eps=1, attention_probs_dropout_prob=0.1, dtype="float16", id2label={})
    )

    assert config == BertConfig(hidden_size=24, layer_norm_eps=1)


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": None, "is_decoder": False, "add_cross_attention": False, "embedding_size": None},
        {"architectures": ["BertForMaskedLM"], "model_type": "bert", "position_embedding_type": "absolute"},
        {"architectures": [], "embedding_size": 768},
        {"pad_token_id": None},
    ],
)
def test_harmless_values(values, config_file):
    """What says no more than "a plain BERT encoder" is accepted; a null pad_token_id is the default 0."""
    assert BertConfig.from_file(config_file(**values)) == BertConfig()


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        (
            {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "activation": "relu"},
            {
                "hidden_size": 24,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 96,
                "hidden_act": "relu",
            },
        ),
        (
            {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4},
            {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4},
        ),
        (
            {"hidden_size": 24, "dim": 36, "n_heads": 4, "num_attention_heads": 2},
            {"hidden_size": 24, "num_attention_heads": 2},
        ),
        ({"intermediate_size": 96, "hidden_act": "relu"}, {"intermediate_size": 3072, "hidden_act": "gelu"}),
        ({"layer_norm_eps": 0.5, "sinusoidal_pos_embds": True}, {"layer_norm_eps": 1e-12}),
        ({"type_vocab_size": 0}, {"type_vocab_size": 1}),
    ],
    ids=str,
)
def test_keys_of_distilbert(values, fields, config_file):
    """DistilBERT's own keys are read; of BERT's, those that its class takes, and never an epsilon (D2-D4)."""
    config = dataclasses.asdict(BertConfig.from_file(config_file(model_type="distilbert", **values)))

    assert {name: config[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("values", "padding_id", "tokens"),
    [
        ({"model_type": "bert", "pad_token_id": 5}, None, 512),
        ({"model_type": "distilbert", "pad_token_id": 5}, None, 512),
        ({"model_type": "mpnet", "pad_token_id": 7, "max_position_embeddings": 514}, 1, 512),
        ({"model_type": "mpnet", "pad_token_id": None, "max_position_embeddings": 514}, 1, 512),
        *(({"model_type": family, "max_position_embeddings": 514}, 1, 512) for family in ROBERTAS),
        *(({"model_type": family, "pad_token_id": 3, "max_position_embeddings": 514}, 3, 510) for family in ROBERTAS),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194}, 1, 8192),
        ({"model_type": "roberta", "max_position_embeddings": 3}, 1, 1),
    ],
    ids=str,
)
def test_where_positions_begin(values, padding_id, tokens, config_file):
    """Positions begin after the model's padding id in RoBERTa's family, and after 1 in MPNet (R3, R4, N2)."""
    config = BertConfig.from_file(config_file(**values))

    assert (config.position_padding_id, config.max_tokens) == (padding_id, tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_epsilon_and_types_come_from_the_file(family, config_file):
    """No family decides on the epsilon, and on the token types, where its code does not (G3)."""
    config = BertConfig.from_file(config_file(model_type=family, layer_norm_eps=1e-5, type_vocab_size=2))

    assert config.layer_norm_eps == (1e-12 if family == "distilbert" else 1e-5)
    assert config.type_vocab_size == (1 if family in {"distilbert", "mpnet"} else 2)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_is_accepted(name, config_file):
    """Every activation that is implemented may be named (F7)."""
    assert BertConfig.from_file(config_file(hidden_act=name)).hidden_act == name


@pytest.mark.parametrize(("values", "message"), LIES, ids=lambda value: str(value)[:60])
def test_lie_is_refused(values, message, config_file):
    """A value that is impossible or not implemented is a ConfigError naming the file and the field (F8)."""
    path = config_file(**values)

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: {message}"):
        BertConfig.from_file(path)


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [(family, values, message) for families, values, message in LIES_OF_FAMILIES for family in families],
    ids=lambda value: str(value)[:60],
)
def test_lie_about_a_family_is_refused(family, values, message, config_file):
    """So is a value that is impossible, or not implemented, in one family (N5, G3, R3, R4, D3)."""
    path = config_file(model_type=family, **values)

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: {message}"):
        BertConfig.from_file(path)


@pytest.mark.parametrize("lie", [0, -1, 16.0, "16", True, None, [16]], ids=repr)
@pytest.mark.parametrize("field", SIZES)
def test_size_that_is_no_positive_whole_number(field, lie, config_file):
    """Each size must be a whole number of at least 1; heads = 0 is no division by zero."""
    with pytest.raises(ConfigError, match=rf"config\.json: {field} must be a whole number of at least 1; it is "):
        BertConfig.from_file(config_file(**{field: lie}))


@pytest.mark.parametrize("eps", ["1e999", "-1e999", "1e-400", "1" + "0" * 400], ids=["inf", "-inf", "0", "10**400"])
def test_eps_beyond_the_floats(eps, tmp_path):
    """An epsilon that a float cannot hold, or that rounds to 0, is refused."""
    path = tmp_path / "config.json"
    path.write_text(f'{{"layer_norm_eps": {eps}}}', "utf-8")

    with pytest.raises(ConfigError, match="layer_norm_eps must be a positive number"):
        BertConfig.from_file(path)


@pytest.mark.parametrize("eps", [float("nan"), float("inf")])
def test_eps_is_checked_without_a_file_too(eps):
    """A config made in code is checked as one from a file is."""
    with pytest.raises(ConfigError, match="layer_norm_eps must be a positive number"):
        BertConfig(layer_norm_eps=eps)


def test_overrides_win(config_file):
    """Overrides take the place of the file's keys, and are checked like them."""
    path = config_file(hidden_act="gelu", vocab_size=80)

    assert BertConfig.from_file(path, {"hidden_act": "relu"}) == BertConfig(hidden_act="relu", vocab_size=80)
    with pytest.raises(ConfigError, match="is_decoder"):
        BertConfig.from_file(path, {"is_decoder": True})


def test_unusable_file_is_named_once(tmp_path):
    """What the JSON reader says of the file is not prefixed with its name again."""
    path = tmp_path / "config.json"
    path.write_text("[]", "utf-8")

    with pytest.raises(ConfigError) as caught:
        BertConfig.from_file(path)
    assert str(caught.value) == f"{path} must hold a JSON object; it holds an array."


def test_config_does_not_change():
    """A config cannot be changed once made."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        BertConfig().hidden_size = 3
