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
    ({"model_type": "roberta"}, "model_type must be \"bert\"; it is 'roberta'"),
    ({"model_type": "bert-generation"}, "model_type must be"),
    ({"model_type": None}, "model_type must be"),
    ({"model_type": ["bert"]}, "model_type must be"),
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
    }


@pytest.mark.reference
def test_defaults_are_those_of_transformers():
    """Without a key its value is that of transformers (F)."""
    import transformers

    peer = transformers.BertConfig()

    assert dataclasses.asdict(BertConfig()) == {
        field.name: getattr(peer, field.name) for field in dataclasses.fields(BertConfig)
    }


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
