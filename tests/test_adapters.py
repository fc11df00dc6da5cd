"""LangChain's and scikit-learn's methods, on an encoder as users have it, without either library and with them."""

import abc
import asyncio
import copy
import itertools
import pickle
import sys
import threading
import types

import numpy as np
import pytest
from support import copy_twin, edit_json, edit_weights, needs

from minibert import SentenceEncoder
from minibert.errors import ModelFileError
from minibert.pipeline import Pipeline

TEXTS = ["the cat", "play happy man", "", "no"]
PROMPTS = {"query": "find: ", "document": "text: ", "other": "happy "}
#: Settings that are no constructor's defaults.
SETTINGS = {
    "prompts": {"query": "a "},
    "default_prompt_name": "other",
    "similarity_fn_name": "dot",
    "truncate_dim": 5,
    "on_truncate": "error",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a model's folder whose prompts differ."""
    folder = copy_twin(tmp_path_factory.mktemp("model"))
    edit_json(folder / "config_sentence_transformers.json", prompts=PROMPTS)
    return folder


@pytest.fixture
def encoder(folder):
    """Return an encoder of that model."""
    return SentenceEncoder(folder)


@pytest.fixture
def loaded_once(encoder, monkeypatch):
    """Return the encoder, and fail if anything is loaded after it."""
    monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("the model was loaded again"))
    return encoder


# ---------------------------------------------------------------- LangChain


def test_embed_documents_uses_the_document_prompt(encoder):
    """``embed_documents`` gives the vectors of ``encode`` with the document prompt (E4)."""
    vectors = encoder.embed_documents(TEXTS)

    np.testing.assert_array_equal(vectors, encoder.encode(TEXTS, prompt="text: ").tolist())


def test_embed_query_uses_the_query_prompt(encoder):
    """``embed_query`` gives the vector of ``encode`` with the query prompt (E4)."""
    assert encoder.embed_query("the cat") == encoder.encode("the cat", prompt="find: ").tolist()


def test_vectors_are_lists_of_python_floats(encoder):
    """Vectors are lists of Python floats, which every store can write."""
    vectors = [*encoder.embed_documents(TEXTS), encoder.embed_query("no")]

    assert {type(vector) for vector in vectors} == {list}
    assert {type(value) for value in itertools.chain.from_iterable(vectors)} == {float}


def test_embed_documents_of_nothing(encoder):
    """No texts give no vectors."""
    assert encoder.embed_documents([]) == []


@pytest.mark.parametrize(
    "texts", ["the cat", {"a": 1, "b": 2}, {"a", "b"}, [["a", "b"]]], ids=lambda value: type(value).__name__
)
def test_embed_documents_takes_texts_only(encoder, texts):
    """A single text is not a list of its characters, and neither keys nor sets are texts (E5)."""
    with pytest.raises(TypeError, match=r"text"):
        encoder.embed_documents(texts)


def test_asynchronous_forms_equal_the_synchronous(encoder):
    """The asynchronous methods give what the synchronous ones give."""

    async def both():
        return await asyncio.gather(encoder.aembed_documents(TEXTS), encoder.aembed_query("the cat"))

    assert asyncio.run(both()) == [encoder.embed_documents(TEXTS), encoder.embed_query("the cat")]


def test_asynchronous_forms_leave_the_loop_free(encoder, monkeypatch):
    """The asynchronous methods compute in another thread than the event loop's."""
    threads = []
    encode = SentenceEncoder.encode

    def record(*args, **options):
        threads.append(threading.current_thread())
        return encode(*args, **options)

    monkeypatch.setattr(SentenceEncoder, "encode", record)
    asyncio.run(encoder.aembed_documents(TEXTS))
    asyncio.run(encoder.aembed_query("no"))

    assert len(threads) == 2
    assert threading.main_thread() not in threads


@pytest.fixture
def langchain(monkeypatch):
    """Put a stand-in for LangChain's module in the place of the real one; return its class."""

    class Embeddings(abc.ABC):
        @abc.abstractmethod
        def embed_query(self, text): ...

    monkeypatch.setitem(sys.modules, "langchain_core.embeddings", types.SimpleNamespace(Embeddings=Embeddings))
    return Embeddings


def test_encoder_is_an_embeddings_of_langchain(langchain, folder):
    """Encoders that are made after LangChain was imported are instances of its class; so are copies."""

    class Own(SentenceEncoder):
        pass

    encoder = SentenceEncoder(folder)

    assert isinstance(encoder, langchain)
    assert isinstance(copy.copy(encoder), langchain)
    assert isinstance(Own(folder), langchain)


def test_unpickled_encoder_is_an_embeddings_of_langchain(encoder, langchain):
    """In a new process, an encoder can come from a pickle: its constructor is not called."""
    data = pickle.dumps(encoder)
    assert not isinstance(encoder, langchain)

    assert isinstance(pickle.loads(data), langchain)  # noqa: S301


def test_half_imported_langchain_is_no_error(monkeypatch, folder):
    """While another thread imports LangChain, its module has no class yet."""
    monkeypatch.setitem(sys.modules, "langchain_core.embeddings", types.ModuleType("langchain_core.embeddings"))

    assert SentenceEncoder(folder).embed_query("no")


# ---------------------------------------------------------------- scikit-learn: parameters


def test_get_params_returns_the_arguments_unchanged(folder):
    """``get_params`` returns every constructor argument, the very object that was given."""
    given = {**SETTINGS, "model_name_or_path": folder, "dtype": "float64", "device": "cpu", "token": False}
    params = SentenceEncoder(**given).get_params()

    assert all(params[name] is value for name, value in given.items())
    assert params.keys() - given.keys() == {
        "cache_folder",
        "revision",
        "local_files_only",
        "kernels",
        "num_threads",
        "max_batch_tokens",
        "max_seq_length",
        "include_prompt",
    }


def test_get_params_make_an_equal_encoder(folder):
    """The constructor takes what ``get_params`` returns."""
    encoder = SentenceEncoder(folder, **SETTINGS)
    again = SentenceEncoder(**encoder.get_params(deep=False))

    assert again.get_params() == encoder.get_params()
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_changing_what_get_params_returned_changes_nothing(encoder):
    """``get_params`` returns a dict of the caller's own."""
    encoder.get_params()["truncate_dim"] = 3

    assert encoder.get_params()["truncate_dim"] is None


def test_set_params_changes_settings_without_loading(loaded_once, folder):
    """Settings change as if the constructor had been given them, and nothing is loaded."""
    encoder = loaded_once
    before, params = encoder.get_params(), encoder._pipeline.params

    assert encoder.set_params(**SETTINGS) is encoder
    assert encoder._pipeline.params is params
    assert encoder.get_params() == {**before, **SETTINGS}
    assert encoder.prompts == {**PROMPTS, "query": "a "}
    assert [getattr(encoder, name) for name in SETTINGS if name != "prompts"] == ["other", "dot", 5, "error"]
    assert encoder.encode(TEXTS).shape == (4, 5)


def test_set_params_to_present_values_loads_nothing(loaded_once):
    """Arguments that are given their present values change nothing, and nothing is loaded."""
    before = loaded_once.get_params()

    assert loaded_once.set_params(**before).get_params() == before


@pytest.mark.parametrize("name", SETTINGS)
def test_set_params_to_none_restores_the_default(encoder, name):
    """A setting goes back to the model's own with the constructor's default."""
    defaults = encoder.get_params()
    value = getattr(encoder, name)
    encoder.set_params(**{name: SETTINGS[name]})
    assert getattr(encoder, name) != value
    encoder.set_params(**{name: defaults[name]})

    assert getattr(encoder, name) == value


def test_set_params_loads_another_model(encoder, tmp_path):
    """Another model is loaded, and the settings are kept."""
    other = copy_twin(tmp_path, "SBERT-base-nli-v2")
    encoder.set_params(truncate_dim=17).set_params(model_name_or_path=other)

    np.testing.assert_array_equal(encoder.encode(TEXTS), SentenceEncoder(other).encode(TEXTS)[:, :17])
    assert encoder.max_seq_length == 75


def test_set_params_loads_another_precision(encoder):
    """Another dtype is another computation: the model is loaded again."""
    assert encoder.set_params(dtype="float64").encode(TEXTS).dtype == np.float64


def test_set_params_refuses_an_unknown_parameter(loaded_once):
    """Unknown parameters are a ValueError that names them, and nothing changes."""
    before = loaded_once.get_params()
    with pytest.raises(ValueError, match="SentenceEncoder has no parameter batch_size, prompt"):
        loaded_once.set_params(truncate_dim=3, prompt="x", batch_size=1)

    assert loaded_once.get_params() == before
    assert loaded_once.truncate_dim is None


@pytest.mark.parametrize(
    "wrong", [{"default_prompt_name": "x"}, {"similarity_fn_name": "x"}, {"truncate_dim": 1.5}, {"on_truncate": "x"}]
)
def test_refused_setting_changes_nothing(encoder, wrong):
    """Where one setting is refused, the others are left as they were."""
    before = {name: getattr(encoder, name) for name in SETTINGS}
    arguments = encoder.get_params()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        encoder.set_params(**{**SETTINGS, **wrong})

    assert {name: getattr(encoder, name) for name in SETTINGS} == before
    assert encoder.get_params() == arguments


def test_failed_load_changes_nothing(encoder, tmp_path):
    """Where another model cannot be loaded, the encoder goes on with its own."""
    broken = copy_twin(tmp_path)
    edit_json(broken / "config_sentence_transformers.json", prompts={"query": "broken"})
    edit_weights(broken / "model.safetensors", lambda arrays: dict(list(arrays.items())[1:]))
    before, vectors = encoder.get_params(), encoder.encode(TEXTS)
    with pytest.raises(ModelFileError):
        encoder.set_params(model_name_or_path=broken, dtype="float64", truncate_dim=3)

    assert encoder.get_params() == before
    assert (encoder.prompts, encoder.dtype) == (PROMPTS, np.float32)
    np.testing.assert_array_equal(encoder.encode(TEXTS), vectors)


# ---------------------------------------------------------------- scikit-learn: transformer


def test_fit_returns_the_encoder(encoder):
    """There is nothing to fit: the encoder is fitted as it is."""
    assert encoder.fit(TEXTS, [0, 1, 0, 1]) is encoder
    assert encoder.__sklearn_is_fitted__()


@pytest.mark.parametrize("method", ["transform", "fit_transform"])
def test_transform_is_encode(encoder, method):
    """Both give the vectors of ``encode``, which adds the default prompt only."""
    encoder.set_params(default_prompt_name="other", truncate_dim=7)

    np.testing.assert_array_equal(getattr(encoder, method)(TEXTS), encoder.encode(TEXTS, prompt="happy ")[:, :7])


@pytest.mark.parametrize("truncate_dim", [None, 3, 16, 99, -2, 0])
def test_feature_names_number_the_dimensions(encoder, truncate_dim):
    """There is one name, an object of type str, for each dimension of ``transform`` (E1)."""
    encoder.set_params(truncate_dim=truncate_dim)
    names = encoder.get_feature_names_out(["x0"])

    assert names.dtype == object
    assert list(names) == [f"sentenceencoder{i}" for i in range(encoder.transform(TEXTS).shape[1])]


def test_clone_shares_the_model(loaded_once):
    """A clone has the very parameters and tokenizer of the original, and loads nothing."""
    clone = loaded_once.__sklearn_clone__()

    assert clone is not loaded_once
    assert clone._pipeline.params is loaded_once._pipeline.params
    assert clone.tokenizer is loaded_once.tokenizer
    assert clone.get_params() == loaded_once.get_params()
    np.testing.assert_array_equal(clone.encode(TEXTS), loaded_once.encode(TEXTS))


def test_clone_keeps_the_settings(folder):
    """A clone has the settings that the original was made with."""
    encoder = SentenceEncoder(folder, **SETTINGS)
    clone = encoder.__sklearn_clone__()

    assert [getattr(clone, name) for name in SETTINGS] == [getattr(encoder, name) for name in SETTINGS]


def test_clone_has_settings_of_its_own(encoder):
    """What is set on a clone, its dict of prompts included, leaves the original as it was."""
    clone = encoder.__sklearn_clone__()
    clone.prompts["query"] = "changed"
    clone.set_params(**SETTINGS)
    clone.max_seq_length = 4

    assert encoder.prompts == PROMPTS
    assert (encoder.truncate_dim, encoder.on_truncate, encoder.max_seq_length) == (None, "warn", 512)
    assert encoder.get_params()["prompts"] is None


# ---------------------------------------------------------------- scikit-learn: set_output


class Series(list):
    """A stand-in for a column of pandas: texts with an index."""

    index = ("i", "j", "k", "l")


@pytest.fixture
def frames(monkeypatch):
    """Put stand-ins in the place of pandas, polars and scikit-learn; return the last one's configuration.

    A data frame is the dict of the arguments that made it.
    """
    config = {}
    pandas = types.SimpleNamespace(DataFrame=lambda data, **options: {"pandas": data, **options}, Series=Series)
    polars = types.SimpleNamespace(DataFrame=lambda data, **options: {"polars": data, **options})
    for name, module in {"pandas": pandas, "polars": polars}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "sklearn", types.SimpleNamespace(get_config=config.copy))
    return config


NAMES = [f"sentenceencoder{i}" for i in range(16)]


@pytest.mark.parametrize("method", ["transform", "fit_transform"])
@pytest.mark.parametrize(
    ("container", "rest"),
    [("pandas", {"columns": NAMES, "index": None}), ("polars", {"schema": NAMES, "orient": "row"})],
)
def test_set_output_gives_a_data_frame(encoder, frames, method, container, rest):
    """Both methods give a data frame with the feature names; ``encode`` still gives an array."""
    assert encoder.set_output(transform=container) is encoder
    frame = getattr(encoder, method)(TEXTS)

    np.testing.assert_array_equal(frame.pop(container), encoder.encode(TEXTS))
    assert frame == rest


def test_pandas_frame_has_the_index_of_its_column(encoder, frames):
    """A column of pandas gives its index to the data frame. A list has none, although it has a method ``index``."""
    encoder.set_output(transform="pandas")

    assert encoder.transform(Series(TEXTS))["index"] == Series.index
    assert encoder.transform(TEXTS)["index"] is None


def test_columns_follow_truncate_dim(encoder, frames):
    """A shorter vector has fewer columns."""
    frame = encoder.set_output(transform="pandas").set_params(truncate_dim=3).transform(TEXTS)

    assert frame["columns"] == NAMES[:3]
    assert frame["pandas"].shape == (4, 3)


def test_configuration_of_scikit_learn_counts(encoder, frames):
    """``sklearn.set_config`` chooses where ``set_output`` chose nothing, and only there."""
    assert isinstance(encoder.transform(TEXTS), np.ndarray)
    frames["transform_output"] = "polars"
    assert "polars" in encoder.transform(TEXTS)
    assert "pandas" in encoder.set_output(transform="pandas").transform(TEXTS)
    assert "pandas" in encoder.set_output(transform=None).transform(TEXTS)

    assert isinstance(encoder.set_output(transform="default").transform(TEXTS), np.ndarray)


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, SentenceEncoder.__sklearn_clone__, lambda encoder: pickle.loads(pickle.dumps(encoder))],  # noqa: S301
    ids=["copy", "deepcopy", "clone", "pickle"],
)
def test_copies_keep_the_output(encoder, frames, again):
    """A copy gives the same kind of data frame, and its own choice leaves the original as it was."""
    other = again(encoder.set_output(transform="pandas"))
    assert "pandas" in other.transform(TEXTS)
    other.set_output(transform="polars")

    assert "pandas" in encoder.transform(TEXTS)


def test_another_model_keeps_the_output(encoder, frames):
    """``set_params`` loads another model; what ``set_output`` chose stays."""
    encoder.set_output(transform="pandas").set_params(dtype="float64")

    assert encoder.transform(TEXTS)["pandas"].dtype == np.float64


def test_unknown_output_is_an_error(encoder):
    """Another container is refused with the names of those that there are, and nothing changes."""
    with pytest.raises(ValueError, match="transform must be one of None, 'default', 'pandas', 'polars'; it is 'arrow'"):
        encoder.set_output(transform="arrow")

    assert isinstance(encoder.transform(TEXTS), np.ndarray)


def test_missing_library_of_data_frames_is_an_error(encoder, monkeypatch):
    """Without the library, ``transform`` says what to install, or how to have an array."""
    monkeypatch.setitem(sys.modules, "polars", None)
    encoder.set_output(transform="polars")
    with pytest.raises(
        ImportError, match=r'needs polars.*: pip install polars, or .*set_output\(transform="default"\)'
    ):
        encoder.transform(TEXTS)


# ---------------------------------------------------------------- with the libraries themselves

LABELED = [f"{a} {b} {c}" for a in ("the", "no", "a") for b in ("cat", "man") for c in ("happy", "play", "and")]
LABELS = [int("cat" in text) for text in LABELED]


@pytest.mark.reference
def test_scikit_learn_clone(loaded_once):
    """scikit-learn's own ``clone`` shares the model, inside a pipeline too."""
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline

    for other in (clone(loaded_once), clone(make_pipeline(loaded_once))[0]):
        assert other is not loaded_once
        assert other._pipeline is loaded_once._pipeline


@pytest.mark.reference
def test_scikit_learn_pipeline(loaded_once):
    """An encoder is a step of a pipeline that learns from its vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(loaded_once, LogisticRegression(C=1e4, max_iter=10_000)).fit(LABELED, LABELS)

    assert pipeline.score(LABELED, LABELS) == 1
    assert pipeline[:-1].get_feature_names_out()[-1] == "sentenceencoder15"
    assert "SentenceEncoder" in pipeline._repr_html_()


@pytest.mark.reference
def test_scikit_learn_pipeline_of_an_encoder_alone(loaded_once):
    """A pipeline that ends in an encoder transforms without having been fitted."""
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(loaded_once)
    np.testing.assert_array_equal(make_pipeline(loaded_once).transform(TEXTS), loaded_once.encode(TEXTS))


@pytest.mark.reference
def test_scikit_learn_feature_union(loaded_once):
    """Two encoders side by side in a union, one of them cut, keep their vectors and names."""
    from sklearn.base import clone
    from sklearn.pipeline import FeatureUnion

    union = FeatureUnion([("whole", loaded_once), ("cut", clone(loaded_once).set_params(truncate_dim=3))])
    vectors = union.fit_transform(LABELED)

    np.testing.assert_array_equal(vectors[:, :16], loaded_once.encode(LABELED))
    np.testing.assert_array_equal(vectors[:, 16:], vectors[:, :3])
    assert list(union.get_feature_names_out()[-3:]) == [f"cut__sentenceencoder{i}" for i in range(3)]


@pytest.mark.reference
def test_scikit_learn_grid_search(loaded_once):
    """A grid search over ``truncate_dim`` loads the model once, and scores each width by itself."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline as Steps

    steps = Steps([("encoder", loaded_once), ("classifier", RidgeClassifier(alpha=1e-6))])
    search = GridSearchCV(steps, {"encoder__truncate_dim": [1, 4, None]}, cv=3, error_score="raise")
    search.fit(LABELED, LABELS)

    widths = [params["encoder__truncate_dim"] for params in search.cv_results_["params"]]
    assert widths == [1, 4, None]
    best = search.best_params_["encoder__truncate_dim"]
    assert search.best_estimator_["classifier"].n_features_in_ == (best or 16)
    assert len(set(search.cv_results_["mean_test_score"])) > 1


@pytest.mark.integrations
def test_langchain_vector_store(encoder):
    """A vector store of LangChain takes an encoder as it is, and finds each text by itself."""
    stores = needs("langchain_core.vectorstores")
    encoder.set_params(prompts={"query": "", "document": ""})
    store = stores.InMemoryVectorStore(encoder)
    store.add_texts(LABELED)

    assert [store.similarity_search(text, k=1)[0].page_content for text in LABELED] == LABELED
    found = asyncio.run(store.asimilarity_search(LABELED[0], k=1))
    assert found[0].page_content == LABELED[0]
