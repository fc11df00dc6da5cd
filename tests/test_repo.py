"""A repo's description: which modules, which limits and prompts, from all that sentence-transformers ever wrote."""

import json
import logging
import re
import sys

import numpy as np
import pytest
from support import copy_twin, edit_json, twin

from minibert import SentenceEncoder
from minibert.errors import ConfigError, ModelFileError, UnsupportedModuleError
from minibert.repo import ModelRepo

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"
BASE = "sentence_transformers.base.modules"
TEXTS = ["The cat.", "No man can play the violin, and a happy cat listens to the players!"]

#: Every name that each module has had in modules.json.
ALIASES = {
    "Transformer": [f"{OLD}.Transformer", f"{BASE}.transformer.Transformer"],
    "Pooling": [f"{OLD}.Pooling", f"{NEW}.pooling.Pooling"],
    "Normalize": [f"{OLD}.Normalize", f"{NEW}.normalize.Normalize", f"{BASE}.normalize.Normalize"],
    "Dense": [f"{OLD}.Dense", f"{BASE}.dense.Dense"],
    "LayerNorm": [f"{OLD}.LayerNorm", f"{NEW}.layer_norm.LayerNorm"],
    "WordWeights": [f"{OLD}.WordWeights", f"{NEW}.word_weights.WordWeights"],
    "WeightedLayerPooling": [
        f"{OLD}.WeightedLayerPooling",
        f"{NEW}.weighted_layer_pooling.WeightedLayerPooling",
    ],
    "Dropout": [f"{OLD}.Dropout", f"{NEW}.dropout.Dropout"],
}

#: What sentence-transformers 6.2 writes beside the weights and the tokenizer, by file.
VERSION_6 = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{NEW}.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{BASE}.normalize.Normalize"},
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    },
    "config_sentence_transformers.json": {
        "__version__": {"pytorch": "2.13.0", "sentence_transformers": "6.2.0", "transformers": "5.23.0"},
        "default_prompt_name": None,
        "model_type": "SentenceTransformer",
        "prompts": {"document": "", "query": ""},
        "similarity_fn_name": "cosine",
    },
    "1_Pooling/config.json": {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True},
    "2_Normalize/config.json": {
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
    },
}


@pytest.fixture
def repo(tmp_path):
    """Return a copy of the smallest twin."""
    return copy_twin(tmp_path / "repo")


def write_json(path, value):
    """Write a JSON file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_modules(repo, *modules):
    """Write a modules.json of pairs of type and path."""
    write_json(
        repo / "modules.json",
        [{"idx": i, "name": str(i), "type": kind, "path": path} for i, (kind, path) in enumerate(modules)],
    )


# ---------------------------------------------------------------- modules.json


@pytest.mark.parametrize(("kind", "alias"), [(kind, alias) for kind, names in ALIASES.items() for alias in names])
def test_module_types(repo, kind, alias):
    """A module is the same under each of the names that it has had; its folder's name is data (L4, L5)."""
    if kind == "Transformer":
        write_modules(repo, (alias, ""))
        assert ModelRepo.open(repo).transformer_folder == repo
    else:
        write_modules(repo, (f"{OLD}.Transformer", ""), (alias, "any/folder"))
        assert ModelRepo.open(repo).modules == ((kind, repo / "any" / "folder"),)


@pytest.mark.parametrize("kind", ["BERT", "CLIPModel", "StaticEmbedding", "WordEmbeddings", "Pooling", "BoW"])
def test_first_module_must_be_a_transformer(repo, kind):
    """Another first module, such as the BERT of 2019, is refused by its name (L5)."""
    write_modules(repo, (f"{OLD}.{kind}", ""), (f"{OLD}.Pooling", "1_Pooling"))

    with pytest.raises(UnsupportedModuleError, match=rf"modules\.json: the first module must be a Tr.* it is {kind}\."):
        ModelRepo.open(repo)


@pytest.mark.parametrize("kind", ["CNN", "LSTM", "BoW", "Router", "Asym", "Transformer", "SpladePooling", "pooling"])
def test_module_that_is_not_implemented(repo, kind):
    """A module that minibert does not know is refused by its name, with those that it knows (M6)."""
    write_modules(repo, (f"{OLD}.Transformer", ""), (f"{OLD}.{kind}", "1_Pooling"))

    with pytest.raises(NotImplementedError, match=rf"modules\.json: the module {kind} is not implemented.* Dense, Dro"):
        ModelRepo.open(repo)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("kind", ["evil.Pooling", "evil", "sentence_transformers_evil.models.Pooling", ".Pooling", ""])
def test_foreign_code_is_never_imported(repo, kind, position, monkeypatch):
    """A type outside sentence_transformers is refused, and nothing of that name is imported (L4)."""
    for name in ("evil", "sentence_transformers_evil"):
        (repo / f"{name}.py").write_text("raise SystemExit", "utf-8")
    monkeypatch.syspath_prepend(repo)
    modules = [(f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "1_Pooling")]
    modules[position] = (kind, modules[position][1])
    write_modules(repo, *modules)

    with pytest.raises(UnsupportedModuleError, match=rf"'{re.escape(kind)}' is not sentence_transformers' own"):
        ModelRepo.open(repo)
    assert not {"evil", "sentence_transformers_evil"} & sys.modules.keys()


@pytest.mark.parametrize("kind", ["sentence_transformers", "sentence_transformers."])
def test_type_without_a_class(repo, kind):
    """A type that names the package alone is refused like any unknown module."""
    write_modules(repo, (kind, ""))

    with pytest.raises(UnsupportedModuleError, match=r"modules\.json: the first module must be a Transformer"):
        ModelRepo.open(repo)


@pytest.mark.parametrize("path", ["/etc", "..", "../other", "a/../../other", "a\\..\\b", "a\0b", "a\x1b"])
@pytest.mark.parametrize("position", [0, 1])
def test_module_outside_the_repo(repo, path, position):
    """A path that leads out of the repo, or could on some system, is refused (L4)."""
    modules = [(f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "1_Pooling")]
    modules[position] = (modules[position][0], path)
    write_modules(repo, *modules)

    with pytest.raises(
        ConfigError, match=r'modules\.json: each module must have a "path" inside the repo, .*; received'
    ):
        ModelRepo.open(repo)


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ([], "the first module must be a Transformer; it is nothing"),
        ({}, "must hold a JSON array"),
        (["Transformer"], "each module must have a \"path\" .*; received 'Transformer'"),
        ([{"type": f"{OLD}.Transformer"}], 'each module must have a "path"'),
        ([{"path": ""}], "each module must have a type"),
        ([{"path": None, "type": f"{OLD}.Transformer"}], 'each module must have a "path"'),
        ([{"path": "", "type": ["x"]}], "each module must have a type"),
    ],
    ids=str,
)
def test_malformed_modules(repo, modules, reason):
    """A modules.json that is no list of modules is refused by its name."""
    write_json(repo / "modules.json", modules)

    with pytest.raises(ModelFileError, match=rf"modules\.json:? {reason}"):
        ModelRepo.open(repo)


def test_transformer_in_a_folder(repo):
    """The transformer's files may lie in a folder of their own, 0_Transformer in older repos (L4)."""
    vectors = SentenceEncoder(repo).encode(TEXTS)
    (repo / "0_Transformer").mkdir()
    for path in [path for path in repo.iterdir() if path.is_file() and path.name != "modules.json"]:
        path.rename(repo / "0_Transformer" / path.name)
    write_modules(repo, (f"{OLD}.Transformer", "0_Transformer"), (f"{OLD}.Pooling", "1_Pooling"))

    np.testing.assert_array_equal(SentenceEncoder(repo).encode(TEXTS), vectors)


def test_pooling_folder_missing(repo):
    """A module whose config is not there is refused by the name of that file (L7)."""
    (repo / "1_Pooling" / "config.json").unlink()

    with pytest.raises(ConfigError, match=r"1_Pooling.config\.json does not exist"):
        SentenceEncoder(repo)


# ---------------------------------------------------------------- repos without modules.json, or of another kind


def make_bare(repo):
    """Turn a twin into what transformers alone writes, with leftovers that sentence-transformers does not read."""
    (repo / "modules.json").unlink()


def make_sparse(repo):
    """Turn a twin into another kind of model."""
    edit_json(repo / "config_sentence_transformers.json", model_type="SparseEncoder")


@pytest.mark.parametrize("change", [make_bare, make_sparse])
def test_mean_pooling_by_default(tmp_path, change):
    """Such a repo is mean-pooled, and its sentence-transformers settings are passed over (L3, L6)."""
    repo = copy_twin(tmp_path, "bert-base-nli-cls-token")
    settings = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 4}
    edit_json(repo / "config_sentence_transformers.json", similarity_fn_name="dot", **settings)
    edit_json(repo / "sentence_bert_config.json", max_seq_length=7)
    edit_json(repo / "tokenizer_config.json", model_max_length=100)
    change(repo)
    encoder = SentenceEncoder(repo)
    mean = encoder.encode(TEXTS, output_value="token_embeddings")

    assert encoder.max_seq_length == 100
    assert (encoder.prompts, encoder.default_prompt_name) == ({"query": "", "document": ""}, None)
    assert (encoder.similarity_fn_name, encoder.truncate_dim) == ("cosine", None)
    np.testing.assert_allclose(encoder.encode(TEXTS), [tokens.mean(axis=0) for tokens in mean], rtol=0, atol=1e-6)


def test_other_kind_is_logged(repo, caplog):
    """That another kind of model is used as a sentence encoder is said (L6)."""
    make_sparse(repo)
    with caplog.at_level(logging.WARNING, "minibert"):
        ModelRepo.open(repo)

    assert "was saved as a SparseEncoder: its transformer is used with mean pooling" in caplog.text


def test_kind_in_the_log_is_no_escape(repo, caplog):
    """What a repo calls itself cannot clear the terminal that shows the log."""
    edit_json(repo / "config_sentence_transformers.json", model_type="\x1b[2J\x9b31mSparse")
    with caplog.at_level(logging.WARNING, "minibert"):
        ModelRepo.open(repo)

    assert r"was saved as a \x1b[2J\x9b31mSparse: " in caplog.text
    assert "\x1b" not in caplog.text


# ---------------------------------------------------------------- config_sentence_transformers.json


def test_settings(repo):
    """Prompts, the default prompt, the similarity and the width are read; a null prompt is empty (L6)."""
    edit_json(
        repo / "config_sentence_transformers.json",
        prompts={"query": "query: ", "passage": None},
        default_prompt_name="query",
        similarity_fn_name="dot",
        truncate_dim=8,
        requirements={"sentence-transformers": ">=99"},
        __version__={"sentence_transformers": "99.0"},
        unknown=1,
    )
    description, encoder = ModelRepo.open(repo), SentenceEncoder(repo)

    assert description.prompts == {"query": "query: ", "passage": ""}
    assert (description.default_prompt_name, description.similarity_fn_name) == ("query", "dot")
    assert encoder.prompts == {"query": "query: ", "document": "", "passage": ""}
    assert encoder.encode("cat").shape == (8,)


@pytest.mark.parametrize(
    "values", [{}, {"prompts": None, "similarity_fn_name": None}, {"similarity_fn_name": "maxsim"}]
)
def test_settings_that_say_nothing(repo, values):
    """Without a setting, with null, or with another kind of model's similarity, the defaults hold (L6)."""
    edit_json(repo / "config_sentence_transformers.json", **values)
    description = ModelRepo.open(repo)

    assert description.prompts == {}
    assert (description.default_prompt_name, description.similarity_fn_name) == (None, None)
    assert description.truncate_dim is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompts": ["query: "]}, "prompts must map names to texts"),
        ({"prompts": {"query": 1}}, "prompts must map names to texts"),
        ({"default_prompt_name": 1}, "default_prompt_name must be null or of type str; it is 1"),
        ({"similarity_fn_name": ["cosine"]}, "similarity_fn_name must be null or of type str"),
        ({"truncate_dim": "8"}, "truncate_dim must be null or of type int; it is '8'"),
        ({"truncate_dim": True}, "truncate_dim must be null or of type int; it is True"),
    ],
    ids=str,
)
def test_malformed_settings(repo, values, reason):
    """A setting of the wrong type is refused by file and key."""
    edit_json(repo / "config_sentence_transformers.json", **values)

    with pytest.raises(ConfigError, match=rf"config_sentence_transformers\.json: {reason}"):
        ModelRepo.open(repo)


def test_default_prompt_that_is_not_there(repo):
    """A default prompt must be one of the prompts (E3)."""
    edit_json(repo / "config_sentence_transformers.json", default_prompt_name="passage")

    with pytest.raises(ValueError, match="default_prompt_name must be one of query, document; it is 'passage'"):
        SentenceEncoder(repo)


# ---------------------------------------------------------------- sentence-transformers 6


def test_layout_of_version_6(repo):
    """What sentence-transformers 6 writes gives the vectors of what 5 wrote (L12)."""
    write_modules(
        repo, (f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "1_Pooling"), (f"{OLD}.Normalize", "2_Normalize")
    )
    older = SentenceEncoder(repo)
    for name, content in VERSION_6.items():
        write_json(repo / name, content)
    edit_json(repo / "tokenizer_config.json", model_max_length=12)
    newer = SentenceEncoder(repo, on_truncate="ignore")
    assert newer.max_seq_length == 12
    newer.max_seq_length = older.max_seq_length

    np.testing.assert_array_equal(newer.encode(TEXTS), older.encode(TEXTS))


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
def test_what_sentence_transformers_saves(tmp_path):
    """A twin that sentence-transformers has loaded and saved gives the same vectors (L12)."""
    import sentence_transformers

    peer = sentence_transformers.SentenceTransformer(str(twin("bert-base-nli-cls-token")), device="cpu")
    peer.append(sentence_transformers.models.Normalize())
    peer.max_seq_length = 9
    peer.save(str(tmp_path))
    encoder = SentenceEncoder(tmp_path, on_truncate="ignore")

    assert json.loads((tmp_path / "modules.json").read_text("utf-8")) == VERSION_6["modules.json"]
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text()) == VERSION_6["sentence_bert_config.json"]
    assert encoder.max_seq_length == 9
    np.testing.assert_allclose(encoder.encode(TEXTS), peer.encode(TEXTS), rtol=0, atol=1e-6)


def test_information(repo):
    """The precision of the weights and the tokenizer's class are taken from config.json, under either name (L12)."""
    assert ModelRepo.open(repo).dtype == "float32"
    edit_json(repo / "config.json", dtype=..., torch_dtype="float16", tokenizer_class="BertTokenizer")

    assert ModelRepo.open(repo).dtype == "float16"
    assert ModelRepo.open(repo).tokenizer_class == "BertTokenizer"
