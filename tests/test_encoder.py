"""SentenceEncoder's own behaviour: arguments, prompts, order, truncation, outputs."""

import inspect
import logging
import re
import socket
import warnings

import numpy as np
import pytest
from support import copy_twin, edit_json, edit_weights, twin, write_module
from tokenizers import processors

import minibert
from minibert import SearchIndex, SentenceEncoder, instead, quantize_embeddings
from minibert.errors import TruncationError, TruncationWarning, VectorError, WeightsError

TEXTS = ["the cat", "", "a man and the hat", "No", "the guitar " * 9, "42!"]


@pytest.fixture
def prompted(tmp_path):
    """Return a repo with prompts."""
    copy_twin(tmp_path)
    edit_json(
        tmp_path / "config_sentence_transformers.json",
        prompts={"query": "the ", "passage": "a "},
        default_prompt_name="query",
    )
    return tmp_path


def close(a, b):
    """Return whether two arrays differ by rounding only."""
    return np.abs(a - b).max() < 2e-6


# --- what comes out --------------------------------------------------------------------------------------------------


def test_single_text_gives_a_vector(encoder):
    """A str gives (D,), a list of one (1, D) (E5)."""
    assert encoder.encode("the cat").shape == (16,)
    assert encoder.encode(["the cat"]).shape == (1, 16)


def test_no_text_gives_an_empty_matrix(encoder):
    """An empty input gives (0, D) float32, cut as any other."""
    assert encoder.encode([]).shape == (0, 16)
    assert encoder.encode(iter(()), truncate_dim=4).shape == (0, 4)
    assert encoder.encode([]).dtype == np.float32


def test_order_is_kept(encoder):
    """Row i is the vector of text i, whatever the batch size and the lengths (E2)."""
    alone = np.stack([encoder.encode(text) for text in TEXTS])

    for batch_size in (1, 2, 4, 32):
        assert close(encoder.encode(TEXTS, batch_size=batch_size), alone)


def test_token_embeddings(encoder):
    """Token vectors come unstacked, one row a token, special tokens included, neither cut nor normalised (E6)."""
    lengths = encoder.tokenize(TEXTS)["attention_mask"].sum(axis=1)
    vectors = encoder.encode(TEXTS, output_value="token_embeddings", truncate_dim=3, normalize_embeddings=True)

    assert [v.shape for v in vectors] == [(length, 16) for length in lengths]
    assert close(np.stack([v.mean(axis=0) for v in vectors]), encoder.encode(TEXTS))


def test_all_outputs(encoder):
    """output_value=None gives each text's features; truncate_dim acts on its vector (E6)."""
    (first, *rest) = encoder.encode(TEXTS, output_value=None, truncate_dim=3)

    assert len(rest) == len(TEXTS) - 1
    assert set(first) == {"input_ids", "token_type_ids", "attention_mask", "token_embeddings", "sentence_embedding"}
    assert first["sentence_embedding"].shape == (3,)
    assert encoder.encode("No", output_value=None)["input_ids"].ndim == 1


def test_truncate_then_normalize(encoder):
    """Vectors are cut first and scaled to length 1 then; without the flag a cut vector keeps its length (E1)."""
    whole = encoder.encode(TEXTS)
    cut = encoder.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)

    np.testing.assert_array_equal(encoder.encode(TEXTS, truncate_dim=5), whole[:, :5])
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    assert close(cut * np.linalg.norm(whole[:, :5], axis=1, keepdims=True), whole[:, :5])


def test_truncate_dim_of_the_encoder():
    """truncate_dim can be the encoder's, be changed for a while, and be overruled by the call."""
    encoder = SentenceEncoder(twin("BertModel-128d"), truncate_dim=4)

    assert encoder.encode("No").shape == (4,)
    assert encoder.encode("No", truncate_dim=7).shape == (7,)
    assert encoder.get_embedding_dimension() == encoder.get_sentence_embedding_dimension() == 4
    with encoder.truncate_embeddings(None):
        assert encoder.encode("No").shape == (16,)
    assert encoder.truncate_dim == 4


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [("int8", np.int8, 16), ("uint8", np.uint8, 16), ("binary", np.int8, 2), ("ubinary", np.uint8, 2)],
)
def test_precision(encoder, precision, dtype, width):
    """Vectors are quantised over the whole call, not batch by batch (Q1, Q2)."""
    vectors = encoder.encode(TEXTS, precision=precision, batch_size=2)

    assert vectors.dtype == dtype
    assert vectors.shape == (len(TEXTS), width)
    if width == 16:
        assert (vectors.min(axis=0) == np.iinfo(dtype).min).all()


def test_int8_of_a_single_text_is_refused(encoder):
    """One vector has no range to quantise over (E7)."""
    with pytest.raises(ValueError, match="single vector"):
        encoder.encode("No", precision="int8")


def test_list_of_vectors(encoder):
    """convert_to_numpy=False gives a list of vectors."""
    vectors = encoder.encode(TEXTS, convert_to_numpy=False)

    assert isinstance(vectors, list)
    np.testing.assert_array_equal(np.stack(vectors), encoder.encode(TEXTS))


def test_float64():
    """A float64 encoder computes and returns float64."""
    double = SentenceEncoder(twin("BertModel-128d"), dtype=np.float64)

    assert double.encode(TEXTS).dtype == np.float64
    assert double.encode([]).dtype == np.float64


def test_tokenize_pads_to_the_longest(encoder):
    """``tokenize`` gives the model's inputs as int64 arrays."""
    batch = encoder.tokenize(TEXTS)

    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert batch["input_ids"].shape == (len(TEXTS), batch["attention_mask"].sum(axis=1).max())
    assert not batch["token_type_ids"].any()


@pytest.mark.parametrize("precision", ["binary", "ubinary", "int8", "uint8"])
def test_precision_of_token_embeddings(encoder, precision):
    """Token vectors are quantized, too; those of all tokens of the call give the ranges (E6, Q3)."""
    tokens = encoder.encode(TEXTS, output_value="token_embeddings")
    quantized = encoder.encode(TEXTS, output_value="token_embeddings", precision=precision)
    ranges = np.stack([np.concatenate(tokens).min(axis=0), np.concatenate(tokens).max(axis=0)])

    assert len(quantized) == len(TEXTS)
    for before, after in zip(tokens, quantized, strict=True):
        np.testing.assert_array_equal(after, quantize_embeddings(before, precision, ranges=ranges))
    np.testing.assert_array_equal(
        encoder.encode("No", output_value="token_embeddings", precision=precision),
        encoder.encode(["No"], output_value="token_embeddings", precision=precision)[0],
    )
    assert encoder.encode([], output_value="token_embeddings", precision=precision) == []


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["binary", "ubinary", "int8", "uint8"])
def test_precision_of_token_embeddings_as_in_sentence_transformers(encoder, precision):
    """They are what sentence-transformers makes of the same token vectors."""
    from sentence_transformers.util import quantize_embeddings as of_reference

    expected = of_reference(encoder.encode(TEXTS, output_value="token_embeddings"), precision)
    actual = encoder.encode(TEXTS, output_value="token_embeddings", precision=precision)

    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_all_outputs_have_no_precision(encoder):
    """Of all features together, nothing says which to quantize: it is an error, and not passed over."""
    with pytest.raises(ValueError, match=r"precision must be 'float32' for output_value=None.*quantize_embeddings"):
        encoder.encode(TEXTS, output_value=None, precision="binary")


# --- what goes in ----------------------------------------------------------------------------------------------------


def test_bad_item_is_named_before_anything_is_computed(encoder, monkeypatch):
    """An item that is no text raises with its index, and the model is not called."""
    monkeypatch.setattr("minibert.engine.packed.bert", None)

    with pytest.raises(TypeError, match=r"item 2 is a missing value \(None\)"):
        encoder.encode(["a", "b", None])


def test_generator(encoder):
    """Any iterable in order will do, even one that can be read only once."""
    np.testing.assert_array_equal(encoder.encode(text for text in TEXTS), encoder.encode(TEXTS))


def test_sentences_is_the_old_name(encoder):
    """encode(sentences=) works, and says that it is an old name."""
    with pytest.warns(FutureWarning, match="inputs"):
        vectors = encoder.encode(sentences=TEXTS)

    np.testing.assert_array_equal(vectors, encoder.encode(TEXTS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"precision": "int4"}, "precision"),
        ({"output_value": "sentence"}, "output_value"),
        ({"convert_to_tensor": True}, "torch.from_numpy"),
        ({"pool": {"processes": []}}, "threads"),
        ({"chunk_size": 10}, "process pools"),
        ({"prompt_name": "nope"}, "nope"),
    ],
)
def test_bad_argument(encoder, arguments, message):
    """An argument without meaning here is a ValueError that says what to do (E3, E7)."""
    with pytest.raises(ValueError, match=message):
        encoder.encode(TEXTS, **arguments)


def test_unknown_argument(encoder):
    """An argument that nobody knows is a ValueError, as in sentence-transformers (E7)."""
    with pytest.raises(ValueError, match="batchsize"):
        encoder.encode(TEXTS, batchsize=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "onnx"}, "numpy"),
        ({"trust_remote_code": True}, "never runs code"),
        ({"model_kwargs": {"torch_dtype": "float16"}}, "dtype="),
        ({"on_truncate": "shout"}, "on_truncate"),
        ({"dtype": "float16"}, "one of float32, float64 on a CPU; it is float16. Leave it out for float32"),
        ({"dtype": "bfloat16"}, "on a CPU; it is bfloat16. .*bfloat16 are for a SentenceEncoder on a GPU"),
        ({"dtype": "nonsense"}, "on a CPU; it is 'nonsense'."),
        ({"dtype": ("f4", -1)}, r"on a CPU; it is \('f4', -1\)."),
        ({"similarity_fn_name": "maxsim"}, "maxsim"),
        ({"default_prompt_name": "nope"}, "nope"),
        ({"truncate_dim": "many"}, "truncate_dim"),
    ],
)
def test_bad_constructor_argument(arguments, message):
    """A constructor argument without meaning here is a ValueError that says what to do."""
    with pytest.raises(ValueError, match=message):
        SentenceEncoder(twin("BertModel-128d"), **arguments)


def test_neutral_torch_arguments_pass():
    """Migrated code may spell out defaults that ask for nothing."""
    SentenceEncoder(twin("BertModel-128d"), device="cpu", trust_remote_code=False, model_kwargs=None)


def test_local_folder_touches_no_network(monkeypatch):
    """Loading and encoding from a folder opens no socket."""

    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    assert SentenceEncoder(twin("BertModel-128d")).encode("No").shape == (16,)


def test_read_only_folder(tmp_path, monkeypatch):
    """Loading writes nothing."""
    copy_twin(tmp_path / "repo")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "repo").rglob("*")}
    (tmp_path / "repo").chmod(0o555)
    monkeypatch.chdir(tmp_path / "repo")
    SentenceEncoder(tmp_path / "repo").encode("No")

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "repo").rglob("*")} == before


def test_results_do_not_change_with_the_files(tmp_path):
    """Weights are read into memory: files that change or go after loading change nothing."""
    copy_twin(tmp_path)
    encoder = SentenceEncoder(tmp_path)
    before = encoder.encode(TEXTS)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(100)

    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


def test_broken_weights_name_file_and_tensor(tmp_path):
    """A missing tensor stops the load with its name: nothing is filled in."""
    copy_twin(tmp_path)
    name = "encoder.layer.1.output.dense.bias"
    edit_weights(tmp_path / "model.safetensors", lambda arrays: {k: v for k, v in arrays.items() if k != name})

    with pytest.raises(WeightsError, match=f"missing: {name}"):
        SentenceEncoder(tmp_path)


# --- vectors that are not finite --------------------------------------------------------------------------------------


@pytest.fixture
def overflowing(tmp_path):
    """Return a model with finite weights, whose vectors of texts with "man" are not finite."""
    row = SentenceEncoder(twin("BertModel-128d")).tokenizer.token_to_id("man")

    def enlarge(arrays):
        name = "embeddings.word_embeddings.weight"
        arrays[name][row] = np.where(np.arange(16) % 2, 3e38, -1e38)
        return arrays

    edit_weights(copy_twin(tmp_path) / "model.safetensors", enlarge)
    return SentenceEncoder(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1},
        {"normalize_embeddings": True},
        {"precision": "binary"},
        {"convert_to_numpy": False},
        {"output_value": "token_embeddings"},
        {"output_value": None},
    ],
    ids=str,
)
def test_vector_that_is_not_finite_is_an_error(overflowing, options):
    """Where finite weights overflow, the error names the text and says what to look at; nothing else is said."""
    assert len(overflowing.encode([text for text in TEXTS if "man" not in text], **options)) == len(TEXTS) - 1
    with pytest.raises(VectorError, match=r"item 2 has NaN or infinity.*too large for float32.*weights.*float64"):
        overflowing.encode([*TEXTS, TEXTS[2]], **options)
    with pytest.raises(VectorError, match="item 0 has NaN or infinity"):
        overflowing.encode(TEXTS[2], **options)


def test_vector_that_is_not_finite_in_a_stream(overflowing):
    """In a stream the text is named by its index in all of the input, after the chunks before its own."""
    stream = overflowing.encode_stream(TEXTS, chunk_size=2)

    assert np.isfinite(next(stream)).all()
    with pytest.raises(VectorError, match="item 2 has NaN or infinity"):
        next(stream)


def test_wider_numbers_are_finite(overflowing):
    """What the message says helps: in float64 there is room for such weights."""
    overflowing.set_params(dtype="float64")

    assert np.isfinite(overflowing.encode(TEXTS)).all()


def test_maximum_over_no_token(tmp_path):
    """A text of which no token is pooled has, by the definition of "max", an infinite vector; others are checked."""
    tokenizer = SentenceEncoder(twin("BertModel-128d")).tokenizer
    tokenizer.post_processor = processors.Sequence([])  # no token goes around a text
    copy_twin(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    write_module(tmp_path / "1_Pooling", {"embedding_dimension": 16, "pooling_mode": "max", "include_prompt": False})
    encoder = SentenceEncoder(tmp_path)
    assert encoder.max_seq_length == 512

    vectors = encoder.encode(["", "cat"], prompt="the ")
    assert (vectors[0] == -np.inf).all()
    assert np.isfinite(vectors[1]).all()


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts(prompted):
    """A prompt is put before the text: given, named, or the default one (E1, E3)."""
    encoder = SentenceEncoder(prompted)
    with_prompt = encoder.encode("the cat", prompt="")

    np.testing.assert_array_equal(encoder.encode("cat"), with_prompt)
    np.testing.assert_array_equal(encoder.encode("cat", prompt_name="query"), with_prompt)
    np.testing.assert_array_equal(encoder.encode("cat", prompt="the "), with_prompt)
    np.testing.assert_array_equal(encoder.encode_query("cat"), with_prompt)


def test_prompt_beats_prompt_name(prompted, caplog):
    """Given both, the prompt itself is used, and a log line says so (E3)."""
    encoder = SentenceEncoder(prompted)
    with caplog.at_level(logging.WARNING):
        vector = encoder.encode("cat", prompt_name="query", prompt="a ")

    np.testing.assert_array_equal(vector, encoder.encode("a cat", prompt=""))
    assert "prompt" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "error", "message"), [(7, TypeError, "prompt must be a text"), ("\ud800", ValueError, "lone surrogate")]
)
def test_bad_prompt(encoder, prompt, error, message):
    """A prompt is a text, and valid Unicode."""
    with pytest.raises(error, match=message):
        encoder.encode(TEXTS, prompt=prompt)


def test_empty_document_prompt_hides_passage(prompted):
    """Every model has a "document" prompt, empty by default, so "passage" is not reached (E4)."""
    encoder = SentenceEncoder(prompted)

    np.testing.assert_array_equal(encoder.encode_document("cat"), encoder.encode("cat", prompt=""))


def test_constructor_prompts_take_precedence(prompted):
    """Prompts of the constructor replace the repo's of the same name and leave the others."""
    encoder = SentenceEncoder(prompted, prompts={"document": "a ", "query": ""})

    assert encoder.prompts == {"query": "", "document": "a ", "passage": "a "}
    np.testing.assert_array_equal(encoder.encode_document("cat"), encoder.encode("a cat", prompt=""))
    np.testing.assert_array_equal(encoder.encode_query("cat"), encoder.encode("cat", prompt=""))


def test_query_and_document_take_encodes_arguments(prompted):
    """encode_query and encode_document pass everything else on, by position or by name."""
    encoder = SentenceEncoder(prompted)

    assert encoder.encode_query(TEXTS, None, "a ", 2, truncate_dim=3).shape == (len(TEXTS), 3)
    assert len(encoder.encode_document(TEXTS, output_value="token_embeddings")) == len(TEXTS)


@pytest.mark.parametrize("method", [SentenceEncoder.encode_query, SentenceEncoder.encode_document])
def test_query_and_document_show_encodes_arguments(method):
    """Editors see the same arguments, with the same defaults; only the inputs must be given."""
    parameters = list(inspect.signature(method).parameters.values())
    of_encode = list(inspect.signature(SentenceEncoder.encode).parameters.values())

    assert parameters[1].name == of_encode[1].name == "inputs"
    assert parameters[1].default is inspect.Parameter.empty
    assert [parameters[0], *parameters[2:]] == [of_encode[0], *of_encode[2:]]


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_query_and_document_refuse_what_encode_refuses(encoder, method):
    """An unknown argument, or one that only PyTorch could honour, is a ValueError there, too (E7)."""
    with pytest.raises(ValueError, match="batchsize"):
        getattr(encoder, method)(TEXTS, batchsize=3)
    with pytest.raises(ValueError, match=r"torch\.from_numpy"):
        getattr(encoder, method)(TEXTS, convert_to_tensor=True)


# --- truncation ------------------------------------------------------------------------------------------------------


def test_truncation_warns_once_a_call(changeable):
    """One warning a call, with the count and the longest; the same is readable afterwards."""
    changeable.max_seq_length = 5
    with pytest.warns(TruncationWarning, match=r"2 of 6 texts were cut to max_seq_length = 5 tokens") as caught:
        changeable.encode(TEXTS, batch_size=1)

    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (changeable.truncation.count, changeable.truncation.limit) == (2, 5)
    assert str(changeable.truncation.longest) in str(caught[0].message)


@pytest.mark.parametrize(
    "call",
    [
        lambda encoder: encoder.encode(TEXTS),
        lambda encoder: encoder.encode_query(TEXTS),
        lambda encoder: encoder.encode_document(TEXTS),
        lambda encoder: encoder.embed_query(TEXTS[4]),
        lambda encoder: encoder.embed_documents(TEXTS),
        lambda encoder: encoder.fit_transform(TEXTS),
        lambda encoder: list(encoder.encode_stream(TEXTS)),
        lambda encoder: SearchIndex.build(encoder, TEXTS),
    ],
    ids=["encode", "query", "document", "embed_query", "embed_documents", "fit_transform", "stream", "index"],
)
def test_truncation_warning_names_the_callers_line(changeable, call):
    """Whatever method was called, the warning is about the caller's line: Python shows it once for each of them."""
    changeable.max_seq_length = 5
    with pytest.warns(TruncationWarning) as caught:
        call(changeable)

    code = call.__code__
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, code.co_firstlineno)]


def test_truncation_can_be_ignored_and_is_still_counted(changeable):
    """on_truncate="ignore" says nothing; the counter is kept, and set back by the next call."""
    changeable.on_truncate = "ignore"
    changeable.max_seq_length = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changeable.encode(TEXTS)
    assert changeable.truncation.count == 2

    changeable.encode("No")
    assert changeable.truncation.count == 0


def test_truncation_can_be_an_error(changeable, monkeypatch):
    """on_truncate="error" names the first text that is too long, before anything is computed."""
    changeable.on_truncate = "error"
    changeable.max_seq_length = 5
    monkeypatch.setattr("minibert.engine.packed.bert", None)

    with pytest.raises(TruncationError, match=r"max_seq_length = 5 tokens; item 2 has .*, and 1 more"):
        changeable.encode(TEXTS)


def test_truncated_text_keeps_its_beginning(changeable):
    """A text is cut as sentence-transformers cuts it: [CLS], its first tokens, [SEP]."""
    changeable.max_seq_length = 4
    changeable.on_truncate = "ignore"

    np.testing.assert_array_equal(changeable.encode("the cat and a hat"), changeable.encode("the cat"))


@pytest.mark.parametrize("value", [np.int64(64), np.uint8(64), 64])
def test_max_seq_length_of_numpy(changeable, value):
    """A whole number of numpy is taken, and becomes Python's."""
    changeable.max_seq_length = value

    assert (changeable.max_seq_length, type(changeable.max_seq_length)) == (64, int)


@pytest.mark.parametrize("value", [0, 1, 513, 7.0, True, None])
def test_max_seq_length_must_fit_the_position_table(changeable, value):
    """max_seq_length is from the 2 special tokens to the 512 rows of the position table (L10)."""
    with pytest.raises(ValueError, match="512"):
        changeable.max_seq_length = value

    assert changeable.max_seq_length == changeable.get_max_seq_length() == 512


# --- the rest --------------------------------------------------------------------------------------------------------


def test_similarity_functions(encoder):
    """``similarity`` is every row with every row, ``similarity_pairwise`` row by row; cosine by default."""
    vectors = encoder.encode(TEXTS)
    scores = encoder.similarity(vectors[:2], vectors)

    assert scores.shape == (2, len(TEXTS))
    np.testing.assert_allclose(
        encoder.similarity_pairwise(vectors[:2], vectors[1:3]), np.diag(scores, 1)[:2], atol=1e-6
    )
    assert SentenceEncoder(twin("BertModel-128d"), similarity_fn_name="dot").similarity(
        vectors[0], vectors[0]
    ) == pytest.approx(vectors[0] @ vectors[0])


def test_progress_bar_is_on_request(encoder, capfd, caplog):
    """A bar shows when asked for, or while the logger "minibert" is at INFO (E8)."""
    encoder.encode(TEXTS)
    assert capfd.readouterr().err == ""
    encoder.encode(TEXTS, show_progress_bar=True)
    assert "Texts" in capfd.readouterr().err
    with caplog.at_level(logging.INFO, "minibert"):
        encoder.encode(TEXTS)
    assert "Texts" in capfd.readouterr().err


@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS, "No", *TEXTS], ["No"] * 3, ["No"]])
def test_progress_bar_ends_at_the_total(encoder, capfd, texts):
    """Every text counts, those that are equal to another one too."""
    encoder.encode(texts, show_progress_bar=True)
    last = capfd.readouterr().err.rstrip().rpartition("\r")[2]

    assert last.startswith("Texts: 100%")
    assert f" {len(texts)}/{len(texts)} " in last


def test_plain_attributes(encoder):
    """What migrated code reads."""
    assert encoder.device == "cpu"
    assert encoder.tokenizer.get_vocab_size() == 80
    assert encoder.similarity_fn_name == "cosine"
    assert encoder.dtype == np.float32


# ---------------------------------------------------------------- names of sentence-transformers


@pytest.mark.parametrize("name", sorted(instead.METHODS))
def test_missing_method_says_what_to_use(encoder, name):
    """A method of SentenceTransformer that is missing here says what to use instead; it still counts as missing."""
    with pytest.raises(AttributeError, match=re.escape(f"SentenceEncoder has no attribute {name!r}: ")) as error:
        getattr(encoder, name)

    assert instead.METHODS[name] in str(error.value)
    assert error.value.name == name
    assert not hasattr(encoder, name)


@pytest.mark.parametrize("name", sorted(instead.PACKAGE))
def test_missing_name_of_the_package_says_what_to_use(name):
    """So does the package, for the names of sentence_transformers."""
    with pytest.raises(AttributeError, match=re.escape(f"minibert has no attribute {name!r}: ")) as error:
        getattr(minibert, name)

    assert instead.PACKAGE[name] in str(error.value)


def test_unknown_names_are_plain_errors(encoder):
    """A name that nobody knows is an AttributeError without advice."""
    with pytest.raises(AttributeError, match=r"^SentenceEncoder has no attribute 'encod'$"):
        _ = encoder.encod
    with pytest.raises(AttributeError, match=r"^minibert has no attribute 'encod'$"):
        _ = minibert.encod


def test_modules_cannot_be_taken_out(encoder):
    """``model[0]`` and a loop over the modules say where to find them."""
    with pytest.raises(TypeError, match=r"modules of a SentenceEncoder cannot be taken out.*minibert\.BertModel"):
        encoder[0]
    with pytest.raises(TypeError, match=r"modules of a SentenceEncoder cannot be taken out"):
        list(encoder)

    assert bool(encoder)
    assert np.array([encoder, None], object)[0] is encoder


# ---------------------------------------------------------------- the tokenizer is a copy


def pad_to_12(tokenizer):
    """Let a tokenizer fill texts up."""
    tokenizer.enable_padding(length=12)


def cut_to_3(tokenizer):
    """Let a tokenizer cut texts."""
    tokenizer.enable_truncation(3)


def know_a_new_word(tokenizer):
    """Give a tokenizer a token for which there is no embedding."""
    assert tokenizer.add_tokens(["guitar and"]) == 1


@pytest.mark.parametrize("change", [pad_to_12, cut_to_3, know_a_new_word])
def test_changes_of_the_tokenizer_are_without_effect(change):
    """What is changed in ``encoder.tokenizer`` changes no vector and no id."""
    encoder = SentenceEncoder(twin("BertModel-128d"))
    texts = [*TEXTS, "a guitar and a cat"]
    vectors, inputs = encoder.encode(texts), encoder.tokenize(texts)
    change(encoder.tokenizer)

    np.testing.assert_array_equal(encoder.encode(texts), vectors)
    np.testing.assert_array_equal(encoder.encode(texts[-1]), vectors[-1])
    np.testing.assert_array_equal(encoder.tokenize(texts)["input_ids"], inputs["input_ids"])


def test_tokenizer_gives_the_same_ids(encoder):
    """It gives the ids that the encoder makes, and is the same object each time."""
    ids, mask = (encoder.tokenize(TEXTS)[name] for name in ("input_ids", "attention_mask"))
    own = encoder.tokenizer.encode_batch(TEXTS)

    assert [each.ids for each in own] == [row[kept].tolist() for row, kept in zip(ids, mask.astype(bool), strict=True)]
    assert encoder.tokenizer is encoder.tokenizer
