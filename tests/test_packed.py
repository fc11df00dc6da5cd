"""The packed forward pass computes what the reference does; the pipeline computes no more than is asked for."""

import functools
import json
import re
import tracemalloc

import numpy as np
import pytest
from packed_cases import EACH_RULE, RULES, cast, random_model, random_tensors
from safetensors.numpy import save_file
from support import MODELS, assert_as_accurate, copy_twin, edit_weights, twin, write_module

from minibert.bert_model import BertModel
from minibert.config import BertConfig
from minibert.engine import packed
from minibert.engine.devices import CpuEngine
from minibert.engine.fused_numpy import FusedCpu
from minibert.engine.packing import Packing
from minibert.engine.threads import one_blas_thread
from minibert.engine.token_ids import TokenIds
from minibert.errors import TokenizerError, WeightsError
from minibert.files import checkpoint
from minibert.files.checkpoint import BertReader
from minibert.modules import chain
from minibert.modules.kinds import Pooling
from minibert.pipeline import Pipeline
from minibert.positions import bias_by_distance
from minibert.repo import ModelRepo

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
EACH_CARD = pytest.mark.parametrize("card", MODELS)
CLS_CARDS = pytest.mark.parametrize("card", [card for card in MODELS if MODELS[card]["pooling_mode"] == "cls"])
FLOAT64 = 1e-12

#: Sizes of a small model of which the weights are a few times those of one layer.
SIZES = BertConfig(
    vocab_size=50,
    hidden_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=40,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Hold BLAS to one thread, as it is where batches are computed and models are loaded."""
    with one_blas_thread():
        yield


def random_texts(config, texts=25):
    """Return the ids of texts of random lengths, some equal, from one token to all that the model takes."""
    rng = np.random.default_rng(0)
    lengths = [1, *sorted(rng.integers(1, 30, texts).tolist()), min(200, config.max_tokens), 1, 2]
    return [rng.integers(0, config.vocab_size, length) for length in lengths]


def pack(texts, rule):
    """Return the packing of texts, their first tokens' packing, and their ids one after the other."""
    offsets = [int(ids.sum()) for ids in texts]
    packing = Packing.of([len(ids) for ids in texts], offsets, rule)
    return packing, packing.first_tokens(offsets, rule), np.concatenate(texts)


def lay_out(parameters, config):
    """Return a model's parameters as the packed forward pass takes them."""
    layers = tuple(packed.pack_layer(layer, config.num_attention_heads) for layer in parameters.layers)
    bias = parameters.relative_bias
    return packed.PackedParams(
        parameters.embeddings, layers, None if bias is None else bias_by_distance(bias, config.max_tokens)
    )


def packed_states(parameters, config, texts, rule, dtype):
    """Return the hidden states of all tokens in order, ``(L + 1, tokens, H)``, by the packed forward pass."""
    packing, _, ids = pack(texts, rule)
    states, fused = [], FusedCpu(dtype)
    keep = lambda x: states.append(fused.in_order(x, packing).copy())  # noqa: E731
    last = packed.bert(lay_out(cast(parameters, dtype), config), config, ids, packing, fused, None, keep)

    np.testing.assert_array_equal(fused.in_order(last, packing), states[-1])
    return np.stack(states)


def reference_states(parameters, config, texts, dtype):
    """Return the same by the reference, one text after the other."""
    parameters = cast(parameters, dtype)
    bert = BertModel(config, parameters)
    states = [np.concatenate(bert(ids[None], output_hidden_states=True).hidden_states) for ids in texts]
    return np.concatenate(states, axis=1)


@functools.cache
def card_states(card):
    """Return the config and parameters of a card's twin, texts for it, and the reference's states in each precision."""
    config = BertConfig.from_file(twin(card) / "config.json")
    parameters = checkpoint.load_bert(twin(card), config)
    texts = random_texts(config)
    states = {dtype: reference_states(parameters, config, texts, dtype) for dtype in ("float32", "float64")}
    return config, parameters, texts, states


def check(actual, states, dtype):
    """Fail unless hidden states are those of the reference, or in float32 as accurate."""
    assert actual.dtype == dtype
    if dtype == "float32":
        assert_as_accurate(actual, states["float32"], states["float64"])
    else:
        np.testing.assert_allclose(actual, states["float64"], rtol=0, atol=FLOAT64, equal_nan=False)


# ---------------------------------------------------------------- the forward pass


@EACH_CARD
@EACH_RULE
@DTYPES
def test_hidden_states(card, rule, dtype):
    """The embeddings and every layer's output of every token are the reference's, however the tokens are packed."""
    config, parameters, texts, states = card_states(card)

    check(packed_states(parameters, config, texts, rule, dtype), states, dtype)


@EACH_CARD
@EACH_RULE
@DTYPES
def test_first_tokens(card, rule, dtype):
    """Where only first tokens are asked for, theirs are the same vectors."""
    config, parameters, texts, states = card_states(card)
    packing, first, ids = pack(texts, rule)
    fused = FusedCpu(dtype)
    x = packed.bert(lay_out(cast(parameters, dtype), config), config, ids, packing, fused, first)
    at = np.cumsum([0, *(len(ids) for ids in texts[:-1])])

    assert len(x) == first.rows
    check(fused.in_order(x, first), {kind: each[-1, at] for kind, each in states.items()}, dtype)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("act", ["gelu_new", "relu"])
@DTYPES
def test_other_sizes(layers, act, dtype):
    """One layer only, and another activation, are the reference's as well."""
    config = BertConfig(**{**vars(SIZES), "num_hidden_layers": layers, "hidden_act": act, "layer_norm_eps": 1e-5})
    parameters, texts = random_model(config), random_texts(config, 5)
    states = {kind: reference_states(parameters, config, texts, kind) for kind in ("float32", "float64")}

    check(packed_states(parameters, config, texts, RULES["Haswell"], dtype), states, dtype)


def test_parameters_are_only_read():
    """The forward pass leaves the parameters as they are: threads share them."""
    parameters = lay_out(random_model(SIZES), SIZES)
    before = cast(parameters, np.float32)
    packing, first, ids = pack(random_texts(SIZES, 5), RULES["Haswell"])
    for asked in (None, first):
        packed.bert(parameters, SIZES, ids, packing, FusedCpu(np.float32), asked)

    for own, copy in zip(arrays_of(parameters), arrays_of(before), strict=True):
        np.testing.assert_array_equal(own, copy)


# ---------------------------------------------------------------- the layout


def arrays_of(parameters):
    """Return all arrays in nested tuples."""
    if parameters is None or isinstance(parameters, np.ndarray):
        return [] if parameters is None else [parameters]
    return [array for each in parameters for array in arrays_of(each)]


@pytest.mark.parametrize("bias", [1, 30])
@DTYPES
def test_folded_biases(bias, dtype):
    """With large biases of queries, keys and values, all folded into others or dropped, the vectors are the same."""
    parameters, texts = random_model(SIZES, bias=bias), random_texts(SIZES, 8)
    states = {kind: reference_states(parameters, SIZES, texts, kind) for kind in ("float32", "float64")}

    check(packed_states(parameters, SIZES, texts, RULES["any row"], dtype), states, dtype)


def change_bias(layer, projection, bias):
    """Return a layer with another bias of one of its projections."""
    changed = getattr(layer.attention, projection)._replace(bias=bias)
    return layer._replace(attention=layer.attention._replace(**{projection: changed}))


def changed_fields(projection):
    """Return which arrays of a packed layer's attention depend on the bias of a projection."""
    layer = random_model(SIZES).layers[0]
    one, other = (packed.pack_layer(change_bias(layer, projection, np.full(64, x, np.float32)), 4) for x in (0, 1))
    names = ("qkv", "query_bias", "output", "output_bias")
    return [name for name in names if (getattr(one.attention, name) != getattr(other.attention, name)).any()]


@pytest.mark.parametrize(
    ("projection", "fields"),
    [("query", ["query_bias"]), ("key", []), ("value", ["output_bias"]), ("output", ["output_bias"])],
)
def test_where_biases_go(projection, fields):
    """The bias of queries stays, that of keys is dropped, that of values is part of the output's."""
    assert changed_fields(projection) == fields


@DTYPES
def test_layout(dtype):
    """Weights are ``(in, out)``, the three projections side by side and queries scaled; all contiguous."""
    layer = cast(random_model(SIZES).layers[0], dtype)
    own = packed.pack_layer(layer, 4)
    attention = layer.attention
    expected = np.hstack([attention.query.weight.T / 4, attention.key.weight.T, attention.value.weight.T])

    np.testing.assert_array_equal(own.attention.qkv, expected)
    np.testing.assert_array_equal(own.attention.query_bias, attention.query.bias / 4)
    np.testing.assert_array_equal(own.attention.output, attention.output.weight.T)
    np.testing.assert_array_equal(own.feed_forward.up, layer.feed_forward.intermediate.weight.T)
    np.testing.assert_array_equal(own.feed_forward.down, layer.feed_forward.output.weight.T)
    assert all(array.flags.c_contiguous and array.dtype == dtype for array in arrays_of(own))


# ---------------------------------------------------------------- load


@EACH_CARD
@DTYPES
def test_load(card, dtype):
    """What is loaded is what the reference loads, laid out, in the precision that is asked for."""
    config = BertConfig.from_file(twin(card) / "config.json")
    loaded = packed.load(BertReader(twin(card), config, dtype), config)
    expected = lay_out(checkpoint.load_bert(twin(card), config, dtype), config)

    assert len(loaded.layers) == config.num_hidden_layers
    for own, array in zip(arrays_of(loaded), arrays_of(expected), strict=True):
        assert own.dtype == dtype
        np.testing.assert_array_equal(own, array)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.key.bias",
        "encoder.layer.1.attention.self.value.bias",
        "encoder.layer.1.output.dense.weight",
    ],
)
def test_weights_that_are_not_finite(tmp_path, name, value):
    """NaN and infinity anywhere in the weights are refused at load, also in the bias that is dropped."""

    def spoil(arrays):
        arrays[name].flat[-1] = value
        return arrays

    edit_weights(copy_twin(tmp_path) / "model.safetensors", spoil)
    config = BertConfig.from_file(tmp_path / "config.json")

    with pytest.raises(WeightsError, match=rf"{name} must hold finite numbers; 1 of \d+ are NaN or infinite"):
        packed.load(BertReader(tmp_path, config, np.float32), config)


@DTYPES
def test_memory(tmp_path, dtype):
    """While a model is loaded, no more is in memory than its parameters and two layers: never a second copy."""
    save_file(random_tensors(SIZES), tmp_path / "model.safetensors")
    packed.load(BertReader(tmp_path, SIZES, dtype), SIZES)  # what is imported and cached at first use does not count
    tracemalloc.start()
    try:
        loaded = packed.load(BertReader(tmp_path, SIZES, dtype), SIZES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    weights, layer = (sum(array.nbytes for array in arrays_of(part)) for part in (loaded, loaded.layers[0]))

    assert peak <= weights + 2 * layer


# ---------------------------------------------------------------- what the pipeline computes

MEAN_CARD, CLS_CARD = "BertModel-128d", "bert-base-nli-cls-token"


def open_pipeline(folder, dtype="float64"):
    """Return the pipeline of a repo."""
    return Pipeline.load(ModelRepo.open(folder), CpuEngine(dtype))


class RecordingFused(FusedCpu):
    """Operations that keep how many tokens of each text were pooled."""

    def pool(self, modes, hidden, packing, exclude=0, *, normalize=False):
        """Pool."""
        self.pooled = [group.tokens for group in packing.groups for _ in range(group.texts)]
        return super().pool(modes, hidden, packing, exclude, normalize=normalize)


def features_of(pipeline, texts, prompt_length=0, *, method="sentence_features", fused=None):
    """Return the features of each group of texts; and how many tokens were ``pooled``, where they were at once."""
    fused = fused or RecordingFused(pipeline.params.embeddings.word.dtype)
    features = list(getattr(pipeline, method)(TokenIds.of(texts), fused, prompt_length))
    if method == "sentence_features" and pipeline.at_once:
        features[0]["pooled"] = fused.pooled
    return features


def vectors_of(features):
    """Return all sentence vectors."""
    return np.concatenate([each["sentence_embedding"] for each in features])


def computed_tokens(features):
    """Return how many tokens of each text have a vector."""
    if "pooled" in features[0]:
        return features[0]["pooled"]
    return [len(tokens) for each in features for tokens in each["token_embeddings"]]


def write_chain(repo, *chain):
    """Let modules, pairs of kind and config, follow the transformer of a repo whose width is 20."""
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, config) in enumerate(chain, 1):
        folder = f"{number}_{kind}"
        entries.append({"path": folder, "type": f"sentence_transformers.models.{kind}"})
        weights = {"emb_layer__weight": np.linspace(0.5, 2, 80)[:, None]} if kind == "WordWeights" else {}
        if kind == "WeightedLayerPooling":
            weights = {"layer_weights": np.array([1.0, 2.0])}
        write_module(repo / folder, config, **weights)
    (repo / "modules.json").write_text(json.dumps(entries), "utf-8")
    return repo


@CLS_CARDS
@pytest.mark.parametrize("prompt_length", [0, 2])
def test_cls_needs_the_first_token_only(card, prompt_length):
    """For cls pooling the last layer computes one token a text, and the vector is that of the reference."""
    _, _, texts, states = card_states(card)
    features = features_of(open_pipeline(twin(card)), texts, prompt_length)
    at = np.cumsum([0, *(len(ids) for ids in texts[:-1])])

    assert computed_tokens(features) == [1] * len(texts)
    np.testing.assert_allclose(vectors_of(features), states["float64"][-1, at], rtol=0, atol=FLOAT64)


def test_mean_needs_all_tokens():
    """For mean pooling all tokens are computed, and the vector is their mean."""
    _, _, texts, states = card_states(MEAN_CARD)
    features = features_of(open_pipeline(twin(MEAN_CARD)), texts)
    expected = [
        text.mean(axis=0) for text in np.split(states["float64"][-1], np.cumsum([len(ids) for ids in texts])[:-1])
    ]

    assert computed_tokens(features) == [len(ids) for ids in texts]
    np.testing.assert_allclose(vectors_of(features), expected, rtol=0, atol=FLOAT64)


def test_cls_without_the_prompt_needs_all_tokens():
    """Where a prompt is left out, cls pooling takes the token after it."""
    _, _, texts, states = card_states(CLS_CARD)
    starts = np.cumsum([0, *(len(ids) for ids in texts[:-1])])
    kept = [i for i, ids in enumerate(texts) if len(ids) > 2]
    pipeline = open_pipeline(twin(CLS_CARD)).with_prompt_pooled(False)
    features = features_of(pipeline, [texts[i] for i in kept], prompt_length=2)

    assert computed_tokens(features) == [len(texts[i]) for i in kept]
    np.testing.assert_allclose(vectors_of(features), states["float64"][-1, starts[kept] + 2], rtol=0, atol=FLOAT64)


@pytest.mark.parametrize(
    ("kinds", "first_only"),
    [
        ([("Pooling", {"pooling_mode": "cls"}), ("Normalize", {})], True),
        ([("Pooling", {"pooling_mode": ["cls", "cls"]}), ("Dropout", {"dropout": 0.1})], True),
        ([("Pooling", {"pooling_mode": ["cls", "max"]})], False),
        ([("WordWeights", {"vocab": ["x"] * 80}), ("Pooling", {"pooling_mode": "cls"})], False),
        ([("Pooling", {"pooling_mode": "cls"}), ("WordWeights", {"vocab": ["x"] * 80})], False),
        (
            [
                ("WeightedLayerPooling", {"layer_start": 1, "num_hidden_layers": 2}),
                ("Pooling", {"pooling_mode": "cls"}),
            ],
            False,
        ),
    ],
    ids=lambda value: "-".join(kind for kind, _ in value) if isinstance(value, list) else str(value),
)
def test_chains_that_need_the_first_token_only(tmp_path, kinds, first_only):
    """Nothing but cls pooling, and modules on the sentence vector after it, makes do with one token a text."""
    pipeline = open_pipeline(write_chain(copy_twin(tmp_path, CLS_CARD), *kinds))
    texts = random_texts(pipeline.config, 6)
    expected = [1 if first_only else len(ids) for ids in texts]

    assert chain.takes_first_token(pipeline.modules, 0) == first_only
    assert computed_tokens(features_of(pipeline, texts)) == expected


@pytest.mark.parametrize(
    ("include_prompt", "prompt_length", "first_only"),
    [(True, 0, True), (True, 3, True), (False, 0, True), (False, 3, False)],
)
def test_prompts_and_the_first_token(include_prompt, prompt_length, first_only):
    """A prompt matters to cls pooling only where there is one and it is left out."""
    assert chain.takes_first_token([Pooling("cls", include_prompt=include_prompt)], prompt_length) == first_only


@pytest.mark.parametrize("card", [MEAN_CARD, CLS_CARD])
@DTYPES
def test_token_features(card, dtype):
    """With all tokens come the same bits of the sentence vectors, and each token's vector and id."""
    pipeline, texts = open_pipeline(twin(card), dtype), card_states(card)[2]
    features = features_of(pipeline, texts, method="token_features")
    states = card_states(card)[3]

    np.testing.assert_array_equal(vectors_of(features), vectors_of(features_of(pipeline, texts)))
    check(
        np.concatenate([text for each in features for text in each["token_embeddings"]]),
        {kind: each[-1] for kind, each in states.items()},
        dtype,
    )
    assert [text.tolist() for each in features for text in each["input_ids"]] == [ids.tolist() for ids in texts]


@pytest.mark.parametrize("card", [MEAN_CARD, CLS_CARD])
@pytest.mark.parametrize("method", ["sentence_features", "token_features"])
def test_features_are_kept(card, method):
    """Vectors stay what they are when the same operations compute other texts."""
    pipeline, texts = open_pipeline(twin(card)), card_states(card)[2]
    fused = RecordingFused("float64")
    name = "sentence_embedding" if method == "sentence_features" else "token_embeddings"
    kept = [each[name] for each in features_of(pipeline, texts, method=method, fused=fused)]
    before = [each.copy() for each in kept]
    features_of(pipeline, texts[::-1], method=method, fused=fused)

    for own, copy in zip(kept, before, strict=True):
        np.testing.assert_array_equal(own, copy)


@pytest.mark.parametrize("card", [MEAN_CARD, CLS_CARD])
@pytest.mark.parametrize("method", ["sentence_features", "token_features"])
@pytest.mark.parametrize("lengths", [[0], [0, 0], [2, 0, 1]], ids=str)
def test_text_without_tokens(card, method, lengths):
    """Where the tokenizer adds no special tokens an empty text has no token, and its vector is 0."""
    texts = [np.arange(5, 5 + length) for length in lengths]
    features = features_of(open_pipeline(twin(card)), texts, method=method)

    assert (vectors_of(features) == 0).all(axis=1).tolist() == [length == 0 for length in lengths]
    if method == "token_features":
        assert computed_tokens(features) == lengths


# ---------------------------------------------------------------- ids that no table has


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2, 80, 3], "token ids must be from 0 to 79, the rows of the word embeddings; there is an id 80. Does"),
        ([2, -1, 3], "there is an id -1"),
        ([2, 2**31 - 1], "there is an id 2147483647"),
        ([5] * 513, "a text must have at most 512 tokens, the rows of the position embeddings; there is one of 513"),
    ],
    ids=["one too large", "negative", "largest of all", "too long"],
)
@pytest.mark.parametrize("method", ["sentence_features", "token_features"])
def test_what_is_not_in_the_tables(ids, message, method):
    """An id or a position without a row in its table is an error, in any text of a batch."""
    pipeline = open_pipeline(twin(MEAN_CARD))

    with pytest.raises(TokenizerError, match=re.escape(message)):
        features_of(pipeline, [[2, 79, 3], ids, [5]], method=method)


@pytest.mark.parametrize("method", ["sentence_features", "token_features"])
def test_all_that_is_in_the_tables(method):
    """The last id and the last position can be used."""
    features = features_of(open_pipeline(twin(MEAN_CARD)), [[0, 79], [5] * 512], method=method)

    assert np.isfinite(vectors_of(features)).all()
