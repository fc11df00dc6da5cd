"""The settings of an encoder: checked as a whole, and seen by all that copies, compares or stores an encoder."""

import copy
import json
import pickle

import numpy as np
import pytest
from support import copy_twin, edit_json, twin, write_module

from minibert import SentenceEncoder, settings
from minibert.engine.native import available
from minibert.engine.rows import RowRule
from minibert.pipeline import Pipeline

CARD = "BertModel-128d"
TEXTS = ["the cat", "play happy man", "", "no"]
PROMPTS = {"query": "find: ", "document": "text: ", "other": "happy "}
#: Another value of each setting than an encoder of CARD has by itself.
VALUES = {
    "prompts": {"query": "the ", "other": "a "},
    "default_prompt_name": "other",
    "similarity_fn_name": "dot",
    "truncate_dim": 5,
    "on_truncate": "ignore",
    "num_threads": 7,
    "max_batch_tokens": 33,
    "max_seq_length": 9,
    "include_prompt": False,
}
EACH = pytest.mark.parametrize(("name", "value"), VALUES.items(), ids=VALUES)
#: Values that are refused, with a part of the message.
REFUSED = [
    ("prompts", {"query": 5}, TypeError, r"prompts\['query'\] must be a text"),
    ("prompts", {5: "query"}, TypeError, "the name of a prompt must be a text"),
    ("prompts", {"query": "\ud800"}, ValueError, "lone surrogate"),
    ("prompts", "query", TypeError, "prompts must map names to texts; it is 'query'"),
    ("default_prompt_name", "nope", ValueError, "default_prompt_name must be one of query, document, other"),
    ("default_prompt_name", ["query"], ValueError, "default_prompt_name must be one of"),
    ("similarity_fn_name", "maxsim", ValueError, "similarity_fn_name must be one of"),
    ("truncate_dim", 1.5, ValueError, "truncate_dim must be a whole number"),
    ("on_truncate", "shout", ValueError, "on_truncate must be one of"),
    ("num_threads", 0, ValueError, "num_threads must be at least 1"),
    ("max_batch_tokens", 2.5, ValueError, "max_batch_tokens must be a whole number"),
    ("max_seq_length", 1, ValueError, "max_seq_length must be a whole number from 2, .* to 512, .*; it is 1"),
    ("max_seq_length", 513, ValueError, "max_seq_length must be"),
    ("max_seq_length", True, ValueError, "max_seq_length must be"),
    ("include_prompt", "false", ValueError, "include_prompt must be True or False; it is 'false'"),
    ("include_prompt", 0, ValueError, "include_prompt must be True or False"),
]
EACH_REFUSED = pytest.mark.parametrize(("name", "value", "error", "message"), REFUSED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a model's folder with prompts."""
    folder = copy_twin(tmp_path_factory.mktemp("model"))
    edit_json(folder / "config_sentence_transformers.json", prompts=PROMPTS)
    return folder


@pytest.fixture
def encoder(folder):
    """Return an encoder of the test's own."""
    return SentenceEncoder(folder)


def values_of(encoder):
    """Return all settings of an encoder."""
    return {name: getattr(encoder, name) for name in VALUES}


def copies(encoder):
    """Return an encoder's copies, made in each way in which one can be made."""
    return {
        "clone": encoder.__sklearn_clone__(),
        "copy": copy.copy(encoder),
        "deepcopy": copy.deepcopy(encoder),
        "pickle": pickle.loads(pickle.dumps(encoder)),  # noqa: S301
        "get_params": SentenceEncoder(**encoder.get_params()),
        "set_params": SentenceEncoder().set_params(**encoder.get_params()),
    }


# ---------------------------------------------------------------- who sees a setting


def test_every_setting_is_tested_here():
    """The values above name each setting; each is an attribute and an argument of the constructor."""
    encoder = SentenceEncoder(twin(CARD))

    assert set(VALUES) == set(settings.NAMES) <= encoder.get_params().keys()
    assert all(getattr(encoder, name) != value for name, value in VALUES.items() if name != "default_prompt_name")


@EACH
def test_assigned_setting_is_seen(encoder, name, value):
    """A setting that is assigned is in get_params and repr, and every copy has it."""
    setattr(encoder, name, value)

    assert getattr(encoder, name) == value
    assert encoder.get_params()[name] == value
    assert f"{name}={getattr(encoder, name)!r}" in repr(encoder)
    for how, other in copies(encoder).items():
        expected = {**PROMPTS, **value} if name == "prompts" and how.endswith("params") else value
        assert getattr(other, name) == expected, how


@EACH
def test_setting_of_the_constructor(folder, name, value):
    """The constructor takes every setting; get_params returns the very object, and every copy has its value."""
    encoder = SentenceEncoder(folder, **{name: value})

    assert encoder.get_params()[name] is value
    for how, other in copies(encoder).items():
        assert values_of(other) == values_of(encoder), how


@EACH
def test_none_is_the_models_own(folder, name, value):
    """With None, a setting is as the model has it: in the constructor, and again by set_params."""
    own = values_of(SentenceEncoder(folder))
    encoder = SentenceEncoder(folder, **{name: None})
    assert values_of(encoder) == own
    setattr(encoder, name, value)
    encoder.set_params(**{name: None})

    assert values_of(encoder) == own


def test_set_params_keeps_what_was_assigned(encoder):
    """A setting that was assigned is kept when another one is set, and when another model is loaded."""
    encoder.max_seq_length = 50
    encoder.prompts["query"] = "a "
    encoder.set_params(truncate_dim=4)
    assert (encoder.max_seq_length, encoder.truncate_dim, encoder.prompts["query"]) == (50, 4, "a ")
    encoder.set_params(model_name_or_path=twin("SBERT-base-nli-v2"))

    assert (encoder.max_seq_length, encoder.truncate_dim, encoder.prompts["query"]) == (50, 4, "a ")
    assert encoder.encode(TEXTS).shape == (4, 4)


def test_prompt_that_is_put_in_is_seen(encoder):
    """A prompt that is put into encoder.prompts is used, is in get_params, and every copy has it."""
    encoder.prompts["query"] = "the "
    encoder.prompts.update(other="a ")
    encoder.truncate_dim = 5  # which leaves the prompts the same object

    np.testing.assert_array_equal(encoder.encode_query(TEXTS), encoder.encode(TEXTS, prompt="the "))
    assert encoder.get_params()["prompts"] == {**PROMPTS, "query": "the ", "other": "a "}
    for how, other in copies(encoder).items():
        assert other.prompts == encoder.prompts, how
        other.prompts["query"] = "changed"
    assert encoder.prompts["query"] == "the "


def test_prompts_stay_the_same_object(encoder):
    """Whoever holds encoder.prompts sees and changes the prompts that the encoder has, whatever else is set."""
    prompts = encoder.prompts
    encoder.num_threads = 3
    prompts |= {"query": "a "}

    assert encoder.prompts is prompts
    assert json.loads(json.dumps(prompts)) == {**PROMPTS, "query": "a "}
    encoder.prompts = given = {"query": "b "}
    given["query"] = "c "
    assert encoder.prompts == {"query": "b "}


# ---------------------------------------------------------------- what is refused


@EACH_REFUSED
def test_refused_assignment_changes_nothing(encoder, name, value, error, message):
    """A value that is refused is refused at once, and all settings stay."""
    before = values_of(encoder)
    with pytest.raises(error, match=message):
        setattr(encoder, name, value)

    assert values_of(encoder) == before


@EACH_REFUSED
def test_refused_parameter_changes_nothing(encoder, name, value, error, message):
    """Where set_params refuses one value, it takes none."""
    before, params = values_of(encoder), encoder.get_params()
    with pytest.raises(error, match=message):
        encoder.set_params(
            **{**{other: VALUES[other] for other in ("similarity_fn_name", "truncate_dim")}, name: value}
        )

    assert values_of(encoder) == before
    assert encoder.get_params() == params


@EACH_REFUSED
def test_constructor_refuses_before_the_weights_are_read(folder, monkeypatch, name, value, error, message):
    """The constructor refuses a value before it reads the weights, which can take long."""
    if (name, value) != ("max_seq_length", 1):  # for the smallest length the tokenizer is needed
        monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("the model was loaded"))
        message = message.replace("from 2", "from 0")
    with pytest.raises(error, match=message):
        SentenceEncoder(folder, **{name: value})


def test_set_params_is_whole(encoder):
    """The issue's own case: one good value, one that is refused, and neither is taken."""
    with pytest.raises(ValueError, match="num_threads must be at least 1; it is 0"):
        encoder.set_params(similarity_fn_name="dot", num_threads=0)

    assert encoder.similarity_fn_name == "cosine"
    assert encoder.get_params()["similarity_fn_name"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda prompts: prompts.__setitem__("query", 5),
        lambda prompts: prompts.update({"other": "fine", "query": 5}),
        lambda prompts: prompts.setdefault("new", 5),
        lambda prompts: prompts.__ior__({"query": 5}),
    ],
    ids=["item", "update", "setdefault", "|="],
)
def test_prompt_that_is_no_text_is_not_put_in(encoder, change):
    """Every way to put a prompt in checks it, and puts in nothing where one is refused."""
    with pytest.raises(TypeError, match=r"prompts\['(query|new)'\] must be a text \(str\); it is an int"):
        change(encoder.prompts)

    assert encoder.prompts == PROMPTS


def test_default_prompt_that_is_gone(encoder):
    """A default prompt that was taken out is an error, and not silently no prompt."""
    encoder.default_prompt_name = "other"
    del encoder.prompts["other"]

    with pytest.raises(ValueError, match="default_prompt_name must be one of query, document; it is 'other'"):
        encoder.encode(TEXTS)
    with pytest.raises(ValueError, match="default_prompt_name must be one of"):
        SentenceEncoder(**{**encoder.get_params(), "model_name_or_path": twin(CARD), "prompts": None})


def test_default_prompt_whose_text_is_given(tmp_path):
    """The files may name a default prompt whose text the constructor gives."""
    copy_twin(tmp_path)
    edit_json(tmp_path / "config_sentence_transformers.json", default_prompt_name="passage")
    encoder = SentenceEncoder(tmp_path, prompts={"passage": "a "})

    assert encoder.default_prompt_name == "passage"
    assert encoder.get_params()["default_prompt_name"] is None
    assert "prompts=" in repr(encoder)
    assert copy.copy(encoder).set_params(truncate_dim=3).encode(TEXTS).shape == (4, 3)


def test_default_prompt_that_was_assigned_before(encoder):
    """set_params takes the name of a prompt that was assigned."""
    encoder.prompts = {"mine": "a "}
    encoder.set_params(default_prompt_name="mine")

    assert encoder.get_params()["prompts"] == {"mine": "a "}
    assert encoder.get_params()["default_prompt_name"] == "mine"
    np.testing.assert_array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS, prompt="a "))


def test_numbers_of_numpy(encoder):
    """Whole numbers of numpy are taken, and become Python's."""
    for name in ("truncate_dim", "num_threads", "max_batch_tokens", "max_seq_length"):
        setattr(encoder, name, np.int64(64))
        assert type(getattr(encoder, name)) is int

    assert encoder.encode(TEXTS).shape == (4, 16)


# ---------------------------------------------------------------- what settings do


def test_include_prompt(folder):
    """include_prompt is set_pooling_include_prompt, and what the model's files say by default."""
    options = {"prompt": "play "}
    pooled = SentenceEncoder(folder, include_prompt=True)
    left_out = SentenceEncoder(folder, include_prompt=False)
    changed = SentenceEncoder(folder)
    changed.set_pooling_include_prompt(False)

    assert not np.allclose(left_out.encode(TEXTS, **options), pooled.encode(TEXTS, **options))
    np.testing.assert_array_equal(changed.encode(TEXTS, **options), left_out.encode(TEXTS, **options))
    changed.include_prompt = True
    np.testing.assert_array_equal(changed.encode(TEXTS, **options), pooled.encode(TEXTS, **options))


def test_include_prompt_of_the_files(tmp_path):
    """A model whose files leave the prompt out has include_prompt off."""
    copy_twin(tmp_path)
    write_module(tmp_path / "1_Pooling", {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": False})
    encoder = SentenceEncoder(tmp_path)
    other = SentenceEncoder(twin(CARD), include_prompt=False)

    assert encoder.include_prompt is False
    assert encoder.get_params()["include_prompt"] is None
    np.testing.assert_array_equal(encoder.encode(TEXTS, prompt="a "), other.encode(TEXTS, prompt="a "))


def test_a_stream_uses_the_settings_of_its_call(encoder):
    """What is set while a stream is read does not change the rest of it."""
    stream = encoder.encode_stream(TEXTS, chunk_size=2)
    first = next(stream)
    encoder.truncate_dim, encoder.max_seq_length = 3, 3

    np.testing.assert_array_equal(np.concatenate([first, *stream]), SentenceEncoder(twin(CARD)).encode(TEXTS))


# ---------------------------------------------------------------- copies, pickles and repr


def test_a_copy_shares_the_model(encoder):
    """A copy, a deep one too, has the very parameters of the original: nobody writes to them."""
    for other in (copy.copy(encoder), copy.deepcopy(encoder)):
        assert other._pipeline is encoder._pipeline
        other.truncate_dim = 3
        np.testing.assert_array_equal(other.encode(TEXTS), encoder.encode(TEXTS)[:, :3])

    assert encoder.truncate_dim is None


def test_what_experiment_found_is_found_again(folder, monkeypatch):
    """A pickle does not take the rule for rows, nor the number of cores, along to another processor."""
    encoder = SentenceEncoder(folder, kernels="numpy")
    expected, vectors = encoder._pipeline.row_rule, encoder.encode(TEXTS)
    elsewhere = RowRule((0, 1, 2, 3, 4), threads=not expected.threads)
    object.__setattr__(encoder._pipeline, "row_rule", elsewhere)
    pickled = pickle.dumps(encoder)
    monkeypatch.setattr("minibert.engine.cpu_engines.usable_cores", lambda: 61)
    again = pickle.loads(pickled)  # noqa: S301

    assert encoder._pipeline.row_rule == elsewhere
    assert again._pipeline.row_rule == expected
    assert (again.num_threads, again.get_params()["num_threads"]) == (61, None)
    again.num_threads = 2
    np.testing.assert_array_equal(again.encode(TEXTS), vectors)


def test_number_of_threads_that_was_set_is_pickled(folder, monkeypatch):
    """What somebody has set stays."""
    pickled = pickle.dumps(SentenceEncoder(folder, num_threads=3))
    monkeypatch.setattr("minibert.engine.cpu_engines.usable_cores", lambda: 61)
    again = pickle.loads(pickled)  # noqa: S301

    assert again.num_threads == 3
    assert again.set_params(num_threads=None).num_threads == 61


def test_float64_is_pickled(folder):
    """The precision is kept, and the vectors are the same, to the bit."""
    encoder = SentenceEncoder(folder, dtype="float64")
    again = pickle.loads(pickle.dumps(encoder))  # noqa: S301

    assert again.dtype == np.float64
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_repr(folder):
    """It has what tells one encoder from another, and no access token."""
    encoder = SentenceEncoder(folder, dtype="float64", truncate_dim=7, token="hf_secret")  # noqa: S106

    assert repr(encoder) == (
        f"SentenceEncoder({str(folder)!r}, device='cpu', kernels='numpy', dtype='float64', max_seq_length=512, "
        "truncate_dim=7)"
    )
    kernels = (*available(), "numpy")[0]
    assert repr(SentenceEncoder(kernels=kernels)) == (
        f"SentenceEncoder(device='cpu', kernels='{kernels}', dtype='float32', max_seq_length=512)"
    )


@pytest.mark.reference
def test_grid_search_scores_what_it_reports(encoder):
    """A search over settings keeps those that were assigned: scikit-learn clones the encoder for each score."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline as Steps

    encoder.truncate_dim = 4
    encoder.prompts["other"] = "no "
    texts = [f"{a} {b} {c}" for a in ("the", "no", "a") for b in ("cat", "man") for c in ("happy", "play", "and")]
    steps = Steps([("encoder", encoder), ("classifier", RidgeClassifier(alpha=1e-6))])
    search = GridSearchCV(steps, {"encoder__default_prompt_name": ["other", None]}, cv=3, error_score="raise")
    search.fit(texts, [int("cat" in text) for text in texts])
    best = search.best_estimator_["encoder"]

    assert search.best_estimator_["classifier"].n_features_in_ == 4
    assert (best.truncate_dim, best.prompts["other"]) == (4, "no ")
    assert best.default_prompt_name == search.best_params_["encoder__default_prompt_name"]
