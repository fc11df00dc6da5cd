"""SearchIndex: the exact nearest texts, and a file that is believed only after a check."""

import dataclasses
import doctest
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file
from support import copy_twin, edit_json, edit_weights, load, twin

from minibert import SearchIndex, SentenceEncoder, index
from minibert.errors import IndexFileError, MinibertError, TruncationError
from minibert.index import Hit
from minibert.repo import ModelRepo

NAMES = pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
TEXTS = ["the cat", "a man and the hat", "", "no violin", "the café, 猫", "playing\u2028the\nviolin"]


@pytest.fixture(scope="module")
def encoder():
    """Return an encoder with vectors of 16 dimensions."""
    return SentenceEncoder(twin("BertModel-128d"))


@pytest.fixture(scope="module")
def built(encoder):
    """Return an index of TEXTS."""
    return SearchIndex.build(encoder, TEXTS)


class Vectors:
    """In the place of an encoder: it encodes the text "3" as row 3 of some vectors."""

    fingerprint = "0" * 64

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_query(self, texts, **_):
        """Return the rows that the texts name."""
        return self.vectors[[int(text) for text in texts]]


def of_vectors(vectors, name, numbers=None):
    """Return an index of vectors, whose texts are the numbers of the rows."""
    return SearchIndex(
        texts=[f"row {row}" for row in range(len(vectors))],
        vectors=vectors,
        numbers=np.arange(1, len(vectors) + 1) if numbers is None else numbers,
        model="vectors",
        fingerprint=Vectors.fingerprint,
        similarity_fn_name=name,
    )


def found(vectors, queries, name, top_k):
    """Return what an index of ``vectors`` finds for each row of ``queries``."""
    return of_vectors(vectors, name).search(Vectors(queries), map(str, range(len(queries))), top_k)


def brute_force(vectors, query, name):
    """Return the float64 score of each row, as the textbook has it."""
    a, b = query.astype(np.float64), vectors.astype(np.float64)
    if name == "cosine":
        return b @ a / (np.linalg.norm(a) * np.linalg.norm(b, axis=1))
    if name == "dot":
        return b @ a
    return -np.linalg.norm(b - a, ord={"euclidean": 2, "manhattan": 1}[name], axis=1)


def normal(*shape, seed=0):
    """Return normally distributed float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- search: exact ---------------------------------------------------------------------------------------------------


@NAMES
def test_hits_are_those_of_brute_force(name):
    """Hits are the rows of the largest float64 scores, in their order, with their scores, numbers and texts."""
    vectors, queries = normal(500, 24), normal(70, 24, seed=1)

    hits = found(vectors, queries, name, 10)

    assert len(hits) == 70
    for query, of_query in zip(queries, hits, strict=True):
        scores = brute_force(vectors, query, name)
        rows = np.argsort(-scores)[:10]
        assert [hit.number for hit in of_query] == (rows + 1).tolist()
        assert [hit.text for hit in of_query] == [f"row {row}" for row in rows]
        np.testing.assert_allclose([hit.score for hit in of_query], scores[rows], rtol=1e-5)


@NAMES
def test_equal_scores_are_in_the_order_of_numbers(name):
    """Texts with the same vector have the same score, to the last bit, wherever they lie; the first ones are found."""
    vectors = normal(300, 10)
    vectors[::7] = vectors[0]

    (hits,) = found(vectors, vectors[:1], name, 5)

    if name == "dot":  # a vector is not the nearest to itself: only the equal ones must keep together
        hits = [hit for hit in found(vectors, vectors[:1], name, 300)[0] if (hit.number - 1) % 7 == 0][:5]
    assert [hit.number for hit in hits] == [1, 8, 15, 22, 29]
    assert len({hit.score for hit in hits}) == 1


@NAMES
def test_scores_do_not_depend_on_other_texts(name):
    """A text has the same score, to the last bit, alone and among others, in whatever row."""
    vectors, query = normal(257, 19), normal(1, 19, seed=1)
    everything = {hit.number: hit.score for hit in found(vectors, query, name, 257)[0]}

    for first, last in [(0, 1), (3, 4), (5, 69), (256, 257)]:
        part = found(vectors[first:last], query, name, 257)[0]
        assert {hit.number + first: hit.score for hit in part}.items() <= everything.items()


@given(
    arrays(np.float32, (9, 3), elements=st.floats(-4, 4, width=16).map(round)),
    st.sampled_from(["cosine", "dot", "euclidean", "manhattan"]),
    st.integers(1, 10),
)
def test_any_top_k_is_the_beginning_of_the_ranking(vectors, name, top_k):
    """With many ties and zero vectors, the best k are the first k of all, and a finite score is given to each."""
    (everything,) = found(vectors, vectors[:1], name, 9)
    (hits,) = found(vectors, vectors[:1], name, top_k)

    assert hits == everything[:top_k]
    assert sorted(hit.number for hit in everything) == list(range(1, 10))
    assert everything == sorted(everything, key=lambda hit: (-hit.score, hit.number))
    assert np.isfinite([hit.score for hit in everything]).all()


@NAMES
def test_vectors_beyond_float32_are_an_error(name):
    """A vector that is finite, but whose scores are not, is an error that names its text, not a hit left out."""
    vectors = normal(4, 8)
    vectors[2] = np.sign(vectors[0]) * np.float32(3e38)

    for top_k in (1, 3, 4):
        with pytest.raises(ValueError, match="scores must be finite; that of text 3 is not"):
            found(vectors, vectors[:1] * 8, name, top_k)


# --- search: with an encoder -----------------------------------------------------------------------------------------


def test_scores_are_the_models_similarity(encoder, built):
    """Scores are those of encode_query, encode_document and similarity."""
    queries = ["the hat", "a cat"]
    expected = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(TEXTS))

    for hits, scores in zip(built.search(encoder, queries, top_k=len(TEXTS)), expected, strict=True):
        assert len(hits) == len(TEXTS)
        for hit in hits:
            assert hit.text == TEXTS[hit.number - 1]
            np.testing.assert_allclose(hit.score, scores[hit.number - 1], rtol=1e-5)


def test_each_query_is_answered_as_if_alone(encoder, built):
    """A list of queries gets what each would get; a single text is one query; none gets nothing."""
    queries = ["the hat", "a cat", "the hat"]

    assert built.search(encoder, queries) == [built.search(encoder, query)[0] for query in queries]
    assert built.search(encoder, iter(())) == []


def test_hits_are_plain(encoder, built):
    """A hit holds a float, an int and a str, so that it can go into JSON."""
    hit = built.search(encoder, "the cat", 1)[0][0]

    assert hit == Hit(hit.score, 1, "the cat")
    assert [type(part) for part in hit] == [float, int, str]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (5, 5), (6, 6), (7, 6), (10**9, 6)])
def test_top_k(encoder, built, top_k, count):
    """So many texts are found, or all that there are."""
    assert len(built.search(encoder, "the cat", top_k)[0]) == count


@pytest.mark.parametrize("top_k", [0, -1, 2.0, True, None])
def test_bad_top_k(encoder, built, top_k):
    """Fewer than one text cannot be asked for."""
    with pytest.raises(ValueError, match="top_k must be"):
        built.search(encoder, "the cat", top_k)


@pytest.mark.parametrize(("prompt", "error"), [(3, TypeError), ("\ud800", ValueError)])
def test_prompts_that_are_no_texts_are_refused(encoder, prompt, error):
    """A prompt must be a text, when the index is built and not only when it is searched."""
    with pytest.raises(error, match="query_prompt must be"):
        SearchIndex.build(encoder, TEXTS, query_prompt=prompt)


def test_fingerprint_is_that_of_the_files_before_encoding(tmp_path):
    """Files that change while texts are encoded do not lend the vectors their fingerprint."""
    repo = copy_twin(tmp_path / "model")
    encoder, before = SentenceEncoder(repo), ModelRepo.open(repo).fingerprint

    class Slow(SentenceEncoder):
        def encode_document(self, *arguments, **options):
            edit_json(repo / "sentence_bert_config.json", max_seq_length=7)
            return super().encode_document(*arguments, **options)

    slow = Slow(repo)

    assert SearchIndex.build(slow, TEXTS).fingerprint == before != encoder.fingerprint


@pytest.mark.parametrize("numbers", [[2, 3, 5, 8, 9, 100], np.array([1, 2, 3, 4, 5, 2**40], np.uint64)])
def test_numbers_are_given(encoder, built, numbers):
    """Hits have the numbers of their texts."""
    other = SearchIndex.build(encoder, TEXTS, numbers=numbers)
    expected = [int(numbers[hit.number - 1]) for hit in built.search(encoder, "a cat")[0]]

    assert other.numbers.dtype == np.int64
    assert [hit.number for hit in other.search(encoder, "a cat")[0]] == expected


def test_prompts_are_those_of_the_index(tmp_path):
    """Texts and queries are encoded with the prompts that the encoder had when the index was built."""
    repo = copy_twin(tmp_path / "model")
    prompted = SentenceEncoder(repo, prompts={"query": "no ", "document": "the "})

    built = SearchIndex.build(prompted, TEXTS)

    assert (built.document_prompt, built.query_prompt) == ("the ", "no ")
    np.testing.assert_array_equal(built.vectors, prompted.encode(TEXTS, prompt="the "))
    assert built.search(SentenceEncoder(repo), "a cat") == built.search(prompted, "a cat")
    bare = dataclasses.replace(built, query_prompt="")
    assert bare.search(SentenceEncoder(repo), "no a cat") == built.search(prompted, "a cat")


def test_prompts_can_be_given(encoder):
    """Prompts that are given take precedence, also an empty one."""
    given = SearchIndex.build(encoder, TEXTS, document_prompt="a ", query_prompt="in ")

    np.testing.assert_array_equal(given.vectors, encoder.encode(TEXTS, prompt="a "))
    assert (given.document_prompt, given.query_prompt) == ("a ", "in ")


@pytest.mark.parametrize(
    ("prompts", "document", "query"),
    [
        ({}, "", ""),
        ({"passage": "the "}, "", ""),  # every model has a "document" prompt
        ({"query": "a ", "document": "the "}, "the ", "a "),
    ],
)
def test_prompt_for(prompts, document, query):
    """``prompt_for`` returns what encode_document and encode_query use."""
    encoder = SentenceEncoder(twin("BertModel-128d"), prompts=prompts)

    assert (encoder.prompt_for("document"), encoder.prompt_for("query")) == (document, query)


def test_prompt_for_without_prompts():
    """Without a prompt of its own, a kind of text gets what comes next: a passage's, or the default prompt."""
    encoder = SentenceEncoder(twin("BertModel-128d"), prompts={"passage": "the ", "x": "no "}, default_prompt_name="x")
    del encoder.prompts["document"], encoder.prompts["query"]

    assert (encoder.prompt_for("document"), encoder.prompt_for("query")) == ("the ", "no ")


def test_cut_vectors_are_searched_with_cut_queries(encoder):
    """An index of cut vectors is searched at its own width, whatever the encoder's truncate_dim."""
    with encoder.truncate_embeddings(5):
        cut = SearchIndex.build(encoder, TEXTS)
        expected = cut.search(encoder, "a cat")
    assert cut.vectors.shape == (len(TEXTS), 5)

    assert cut.search(encoder, "a cat") == expected
    with encoder.truncate_embeddings(3):
        assert cut.search(encoder, "a cat") == expected


def test_narrower_model_is_refused(encoder, built):
    """An index that is wider than its model's vectors is an error that has both widths."""
    wide = dataclasses.replace(built, vectors=np.ones((len(TEXTS), 17), np.float32))

    with pytest.raises(ValueError, match="vectors of 17 dimensions; the model gives 16"):
        wide.search(encoder, "a cat")


def test_similarity_is_that_of_the_index(tmp_path):
    """The function that the encoder had when the index was built compares."""
    repo = copy_twin(tmp_path / "model")
    by_dot = SentenceEncoder(repo, similarity_fn_name="dot")
    built = SearchIndex.build(by_dot, TEXTS)

    assert built.similarity_fn_name == "dot"
    assert built.search(SentenceEncoder(repo), "a cat") == built.search(by_dot, "a cat")
    assert built.search(by_dot, "a cat")[0][0].score > 1


def test_other_model_is_refused(encoder, built):
    """An encoder with another model is an error that names both, before anything is encoded."""
    other = SentenceEncoder(twin("SBERT-base-nli-v2"))

    with pytest.raises(ValueError, match="must be searched with the model that made it") as caught:
        built.search(other, 3)
    for part in (twin("BertModel-128d"), twin("SBERT-base-nli-v2"), encoder.fingerprint[:12], other.fingerprint[:12]):
        assert str(part) in str(caught.value)
    assert "build the index again" in str(caught.value)


@pytest.mark.parametrize(("name", "own", "other"), [("max_seq_length", 512, 3), ("include_prompt", True, False)])
def test_other_settings_are_refused(tmp_path, name, own, other):
    """A setting that changes vectors must be the one that the index was made with, after loading, too."""
    prompts = {"document": "text: "}
    encoder = SentenceEncoder(twin("BertModel-128d"), prompts=prompts)
    built = SearchIndex.build(encoder, TEXTS)
    built.save(tmp_path / "x")
    message = f"{name} = {own}; the encoder has {other}. Set encoder.{name} = {own}, or build the index again"
    for index_ in (built, SearchIndex.load(tmp_path / "x")):
        assert getattr(index_, name) == own
        with pytest.raises(ValueError, match=message):
            index_.search(SentenceEncoder(twin("BertModel-128d"), prompts=prompts, **{name: other}), "the cat")
        assert index_.search(encoder, "the cat") == built.search(encoder, "the cat")


def test_pooling_of_prompts_does_not_matter_without_prompts(built):
    """Where no text has a prompt, nothing depends on whether it is pooled."""
    other = SentenceEncoder(twin("BertModel-128d"), include_prompt=False)

    assert built.search(other, "the cat")[0][0].text == "the cat"


def test_older_files_are_checked_by_their_model_alone(tmp_path, built):
    """A file from before the settings were kept is loaded, and searched with the model that made it."""

    def older(_, metadata):
        for name in ("max_seq_length", "include_prompt"):
            del metadata[name]

    index_ = SearchIndex.load(damaged(tmp_path, built, older))
    other = SentenceEncoder(twin("BertModel-128d"), max_seq_length=8)

    assert (index_.max_seq_length, index_.include_prompt) == (None, None)
    assert index_.search(other, "the cat")[0][0].text == "the cat"
    with pytest.raises(ValueError, match="must be searched with the model that made it"):
        index_.check_model(SentenceEncoder(twin("SBERT-base-nli-v2")))
    index_.save(tmp_path / "again")
    assert "max_seq_length" not in load(tmp_path / "again")[1]


def test_queries_that_are_no_texts_are_refused(encoder, built):
    """A query that is no text is named."""
    with pytest.raises(TypeError, match="item 1 is an int"):
        built.search(encoder, ["the cat", 3])


# --- build -----------------------------------------------------------------------------------------------------------


def test_build(encoder, built):
    """An index holds the vectors of encode_document, and what identifies the model."""
    np.testing.assert_array_equal(built.vectors, encoder.encode_document(TEXTS))
    assert built.vectors.dtype == np.float32
    assert built.numbers.tolist() == [1, 2, 3, 4, 5, 6]
    assert built.texts == TEXTS
    assert built.model == str(twin("BertModel-128d"))
    assert built.fingerprint == encoder.fingerprint
    assert (len(built), repr(built)) == (6, f"SearchIndex(6 texts, model {built.model!r})")


def test_built_in_model_has_a_name():
    """The model that has no name is called the built-in one."""
    assert SearchIndex.build(SentenceEncoder(), iter(["a"])).model == "built-in"


def test_float64_encoder_gives_float32_vectors():
    """Vectors are kept in float32."""
    encoder = SentenceEncoder(twin("BertModel-128d"), dtype="float64")
    built = SearchIndex.build(encoder, TEXTS)

    assert built.vectors.dtype == np.float32
    assert built.search(encoder, "the cat", 1)[0][0].text == "the cat"


def test_nothing_cannot_be_indexed(encoder):
    """An index of no text is refused."""
    with pytest.raises(ValueError, match="an index must have at least one text; there is none"):
        SearchIndex.build(encoder, [])


@pytest.mark.parametrize(
    "numbers", [[1], [0, 1], [2, 2], [2, 1], [1.0, 2.0], [[1, 2]], ["1", "2"], [1, 2, 3], [1, 2**63]]
)
def test_bad_numbers(encoder, numbers):
    """Numbers must be whole, from 1, increasing, one for each text."""
    with pytest.raises(ValueError, match="numbers must be whole numbers from 1 for each of the 2 texts, in increasing"):
        SearchIndex.build(encoder, ["a", "b"], numbers=numbers)


def test_vectors_that_are_not_finite_are_refused(monkeypatch, built):
    """A vector with NaN or infinity can be neither kept nor searched with."""
    encoder = SentenceEncoder(twin("BertModel-128d"))
    monkeypatch.setattr(encoder, "encode", lambda texts, *_, **__: np.array([[1.0] * 16, [np.nan] * 16])[: len(texts)])

    with pytest.raises(ValueError, match="that of text 2 has NaN or infinity"):
        SearchIndex.build(encoder, ["a", "b"])
    with pytest.raises(ValueError, match="that of query 2 has NaN or infinity"):
        built.search(encoder, ["a", "b"])


def test_long_texts_are_refused_on_request():
    """on_truncate applies to texts and to queries."""
    encoder = SentenceEncoder(twin("BertModel-128d"), on_truncate="error")
    with pytest.raises(TruncationError):
        SearchIndex.build(encoder, ["a", "the " * 600])
    with pytest.raises(TruncationError):
        SearchIndex.build(encoder, ["a"]).search(encoder, "the " * 600)


# --- the model's fingerprint -----------------------------------------------------------------------------------------


def test_fingerprint_can_be_computed_by_hand(encoder):
    """It is the SHA-256 of what sha256sum prints about the files that are read, sorted."""
    repo = twin("BertModel-128d")
    names = sorted(path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((repo / name).read_bytes()).hexdigest()}  {name}\n" for name in names]

    assert ModelRepo.open(repo).files() == names
    assert encoder.fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda repo: edit_weights(repo / "model.safetensors", lambda w: {name: a * 1.001 for name, a in w.items()}),
        lambda repo: edit_json(repo / "1_Pooling" / "config.json", pooling_mode="cls"),
        lambda repo: edit_json(repo / "sentence_bert_config.json", max_seq_length=64),
        lambda repo: (repo / "vocab.txt").write_text((repo / "vocab.txt").read_text().replace("cat", "cap")),
        lambda repo: edit_json(repo / "config_sentence_transformers.json", prompts={"query": "a "}),
    ],
    ids=["weights", "pooling", "limit", "vocabulary", "prompts"],
)
def test_every_file_that_is_read_changes_the_fingerprint(tmp_path, encoder, change):
    """Another model has another fingerprint."""
    repo = copy_twin(tmp_path / "model")
    change(repo)

    assert SentenceEncoder(repo).fingerprint != encoder.fingerprint


def test_copies_have_the_same_fingerprint(tmp_path, encoder):
    """The folder's name and files that minibert does not read are no part of it; nor is how the model is named."""
    repo = copy_twin(tmp_path / "model")
    (repo / "README.md").write_text("A model.")
    (repo / "onnx").mkdir()
    (repo / "onnx" / "config.json").write_text("{}")

    assert SentenceEncoder(repo).fingerprint == encoder.fingerprint


def test_missing_folder_of_a_module_without_files(tmp_path):
    """The folder of a module that needs no file, which git does not keep, may be missing."""
    repo = copy_twin(tmp_path / "model")
    modules = json.loads((repo / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (repo / "modules.json").write_text(json.dumps(modules))

    assert len(SentenceEncoder(repo).fingerprint) == 64


def test_set_params_changes_the_fingerprint(tmp_path, encoder):
    """An encoder that loads another model has that one's fingerprint."""
    other = SentenceEncoder(twin("SBERT-base-nli-v2"))
    before = other.fingerprint
    other.set_params(model_name_or_path=twin("BertModel-128d"))

    assert other.fingerprint == encoder.fingerprint != before


# --- the file --------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path, encoder, built):
    """What is loaded is what was saved: texts of all kinds, vectors to the last bit, numbers, settings."""
    saved = dataclasses.replace(built, numbers=np.arange(6) * 2**33 + 1, query_prompt="a ", document_prompt="été: ")
    saved.save(tmp_path / "x.safetensors")

    loaded = SearchIndex.load(str(tmp_path / "x.safetensors"))

    for field in dataclasses.fields(SearchIndex):
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        assert type(after) is type(before)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)
        else:
            assert after == before
    assert loaded.search(encoder, ["a cat", "the hat"]) == saved.search(encoder, ["a cat", "the hat"])


def test_empty_texts_alone(tmp_path, encoder):
    """Texts without a byte are kept."""
    SearchIndex.build(encoder, ["", ""]).save(tmp_path / "x")

    assert SearchIndex.load(tmp_path / "x").texts == ["", ""]


def test_file_is_what_its_description_says(tmp_path, built):
    """Other programs find in the file what ``save`` describes."""
    built.save(tmp_path / "x")

    tensors, metadata = load(tmp_path / "x")
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "vectors": ("float32", (6, 16)),
        "numbers": ("int64", (6,)),
        "texts": ("uint8", (sum(len(text.encode()) for text in TEXTS),)),
        "offsets": ("int64", (7,)),
    }
    assert tensors["texts"].tobytes() == "".join(TEXTS).encode()
    assert metadata == {
        "format": "minibert search index",
        "version": "1",
        "model": built.model,
        "fingerprint": built.fingerprint,
        "similarity_fn_name": "cosine",
        "document_prompt": "",
        "query_prompt": "",
        "max_seq_length": "512",
        "include_prompt": "true",
    }


def test_saving_replaces_a_file(tmp_path, encoder, built):
    """An index can be saved where another was, also where it was loaded from."""
    built.save(tmp_path / "x")
    SearchIndex.load(tmp_path / "x").save(tmp_path / "x")
    SearchIndex.build(encoder, ["a"]).save(tmp_path / "x")

    assert SearchIndex.load(tmp_path / "x").texts == ["a"]


def test_strided_vectors_are_saved(tmp_path, built):
    """Vectors that are no contiguous array are saved as they read."""
    dataclasses.replace(built, vectors=built.vectors[:, ::2], numbers=np.arange(12)[1::2]).save(tmp_path / "x")

    loaded = SearchIndex.load(tmp_path / "x")
    np.testing.assert_array_equal(loaded.vectors, built.vectors[:, ::2])
    assert loaded.numbers.tolist() == [1, 3, 5, 7, 9, 11]


def tensor(name, change):
    """Return what changes a tensor of a file."""

    def change_file(tensors, metadata):
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return change_file


def key(name, value):
    """Return what changes a key of a file's metadata, or removes it."""

    def change_file(tensors, metadata):
        metadata.update({name: value})
        if value is None:
            del metadata[name]

    return change_file


def put(position, value):
    """Return what puts a value into an array."""

    def change(array):
        array = array.copy()
        array[position] = value
        return array

    return change


REPLACED = "The file is damaged, or no index of minibert's: build it again."
DAMAGES = {
    "no tensor": (lambda t, _: t.pop("numbers"), "the tensors must be numbers, offsets, texts, vectors; they are off"),
    "another tensor": (lambda t, _: t.update(x=t["numbers"]), "they are numbers, offsets, texts, vectors, x"),
    "dtype of vectors": (tensor("vectors", lambda v: v.astype(np.float16)), "vectors must have dtype F32; it has F16"),
    "dtype of numbers": (tensor("numbers", lambda v: v.astype(np.int32)), "numbers must have dtype I64; it has I32"),
    "dtype of offsets": (tensor("offsets", lambda v: v.astype(np.float64)), "offsets must have dtype I64; it has F64"),
    "dtype of texts": (tensor("texts", lambda v: v.view(np.int8)), "texts must have dtype U8; it has I8"),
    "one dimension": (tensor("vectors", np.ravel), "vectors must have a shape (N, D), neither of them 0; it is (96,)"),
    "no text": (tensor("vectors", lambda v: v[:0]), "neither of them 0; it is (0, 16)"),
    "no width": (tensor("vectors", lambda v: v[:, :0]), "neither of them 0; it is (6, 0)"),
    "fewer vectors": (tensor("vectors", lambda v: v[1:]), "numbers must have shape (5,) for 5 texts; it has (6,)"),
    "fewer numbers": (tensor("numbers", lambda v: v[1:]), "numbers must have shape (6,) for 6 texts; it has (5,)"),
    "fewer offsets": (tensor("offsets", lambda v: v[1:]), "offsets must have shape (7,) for 6 texts; it has (6,)"),
    "texts in rows": (tensor("texts", lambda v: v[None]), "texts must be bytes in one dimension; they have shape (1,"),
    "offset of the first": (tensor("offsets", put(0, 1)), "offsets must go from 0 up to"),
    "offset of the last": (tensor("offsets", put(-1, 2**60)), "offsets must go from 0 up to"),
    "fewer bytes": (tensor("texts", lambda v: v[:-1]), "offsets must go from 0 up to"),
    "offsets that go back": (tensor("offsets", put(2, 3)), "offsets must go from 0 up to"),
    "offset below 0": (tensor("offsets", put(1, -1)), "offsets must go from 0 up to"),
    "offsets that overflow": (tensor("offsets", put(slice(1, 3), [2**63 - 1, -2])), "offsets must go from 0"),
    "bytes": (tensor("texts", put(8, 0xFF)), "text 2 must be UTF-8; its byte 2 is not"),
    "offset in a character": (tensor("offsets", put(4, 41)), "text 4 must be UTF-8; its byte 17 is not"),
    "surrogate": (tensor("texts", put(slice(0, 3), [0xED, 0xA0, 0x80])), "text 1 must be UTF-8; its byte 1 is not"),
    "NaN": (tensor("vectors", put((3, 5), np.nan)), "vectors must be finite; that of text 4 is not"),
    "infinity": (tensor("vectors", put((0, 0), -np.inf)), "vectors must be finite; that of text 1 is not"),
    "number 0": (tensor("numbers", put(0, 0)), "numbers must begin at 1 or above and increase; they do not"),
    "equal numbers": (tensor("numbers", put(1, 1)), "numbers must begin at 1 or above and increase"),
    "similarity": (
        key("similarity_fn_name", "maxsim"),
        "similarity_fn_name must be one of cosine, dot, euclidean, man",
    ),
    "65 digits": (key("fingerprint", "0" * 65), "the fingerprint must be 64 hexadecimal digits"),
    "fingerprint": (key("fingerprint", "\x1b[2J"), "the fingerprint must be 64 hexadecimal digits; it is '\\x1b[2J'"),
    "length": (key("max_seq_length", "1e3"), "max_seq_length must match [1-9][0-9]{0,8}; it is '1e3'"),
    "length of no digit": (key("max_seq_length", "0"), "max_seq_length must match [1-9][0-9]{0,8}; it is '0'"),
    "no flag": (key("include_prompt", "True"), "include_prompt must match true|false; it is 'True'"),
    "no model": (key("model", None), "the metadata must have model, fingerprint, similarity_fn_name, document_prompt"),
    "no prompt": (key("query_prompt", None), "query_prompt; query_prompt is missing"),
}


def damaged(tmp_path, built, change):
    """Return the path of an index that is changed."""
    path = tmp_path / "x.safetensors"
    built.save(path)
    tensors, metadata = load(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_file(tmp_path, built, change, message):
    """Each damage is an error that names the file, the rule, what was found, and the remedy; in one line."""
    path = damaged(tmp_path, built, change)

    with pytest.raises(IndexFileError) as caught:
        SearchIndex.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert text.endswith(REPLACED)
    assert "\n" not in text


def test_undamaged_file(tmp_path, built):
    """What the tests of damage write is fine without the damage."""
    assert SearchIndex.load(damaged(tmp_path, built, lambda *_: None)).texts == TEXTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (key("format", None), 'must have metadata with the format "minibert search index"; it is another'),
        (key("format", "pt"), "`minibert index` makes a search index."),
        (key("version", "2"), "must have version 1 of the format; it has '2'. Update minibert, or build the"),
        (key("version", None), "must have version 1 of the format; it has None"),
    ],
)
def test_other_formats(tmp_path, built, change, message):
    """Another safetensors file, and an index of another version, are told apart from a damaged one."""
    path = damaged(tmp_path, built, change)

    with pytest.raises(IndexFileError, match=f"{path} must have ") as caught:
        SearchIndex.load(path)
    assert message in str(caught.value)


def test_weights_are_no_index():
    """A model's weights are not taken for an index."""
    with pytest.raises(IndexFileError, match="it is another safetensors file"):
        SearchIndex.load(twin("BertModel-128d") / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"the cat\nthe hat\n", b"\x08" + bytes(7) + b"{}      "])
def test_other_files(tmp_path, content):
    """What is no safetensors file is an error that says so."""
    path = tmp_path / "x.txt"
    path.write_bytes(content)

    with pytest.raises(IndexFileError, match=r"a search index must|must have metadata") as caught:
        SearchIndex.load(path)
    assert str(path) in str(caught.value)


def test_cut_file(tmp_path, built):
    """A file that is cut short, anywhere, is an error."""
    built.save(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()

    for length in (7, 8, 100, len(content) - 1):
        (tmp_path / "x").write_bytes(content[:length])
        with pytest.raises(
            IndexFileError, match=r"a search index must be a safetensors file: .*Build the index again\."
        ):
            SearchIndex.load(tmp_path / "x")


def test_missing_file(tmp_path):
    """A file that is not there, and a folder, are errors of their own."""
    with pytest.raises(IndexFileError, match=r"nowhere does not exist\. `minibert index` makes such a file"):
        SearchIndex.load(tmp_path / "nowhere")
    with pytest.raises(IndexFileError, match=r"must be a regular file; it is a folder\. Build the index again"):
        SearchIndex.load(tmp_path)


def test_error_can_be_caught_with_the_others():
    """The error is one of minibert's, and a ValueError."""
    assert issubclass(IndexFileError, MinibertError)
    assert issubclass(IndexFileError, ValueError)


def test_new_files_have_the_usual_permissions(tmp_path, built):
    """An index may be read by whom the umask lets; the library of the format thinks of the user alone."""
    (tmp_path / "usual").touch()
    built.save(tmp_path / "x")

    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- the documentation -----------------------------------------------------------------------------------------------


def test_example():
    """The example in the docstring gives what it shows."""
    failed, attempted = doctest.testmod(index)

    assert attempted >= 6
    assert failed == 0
