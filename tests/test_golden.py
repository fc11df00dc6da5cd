"""The forward pass and the encoder give what transformers and sentence-transformers give, on a twin of each card.

The cards are those of BERT, and one of each other family.
"""

import functools

import numpy as np
import pytest
from support import GOLDEN, MODELS, MODES, assert_as_accurate, golden, load, split, twin

from minibert import BertModel, SentenceEncoder
from minibert.model import bert
from minibert.pooling import pool

KINDS = ("float32", "float64")
#: Rounding of float64 arithmetic on hidden states of magnitude 10: both sides make errors of this size.
FLOAT64 = 1e-13

pytestmark = pytest.mark.parametrize("card", MODELS)


@functools.cache
def run(card, kind):
    """Return the output for all texts of a card in one padded batch, and the mask of its real tokens."""
    arrays, _ = golden(card)
    model = BertModel.from_pretrained(twin(card), dtype=kind)
    ids, mask = padded(split(arrays["ids"], arrays["lengths"]), model.config)
    return model(ids, mask, output_hidden_states=True), mask


def padded(rows, config):
    """Return rows of ids as one array, and the mask of the real tokens."""
    ids = np.full((len(rows), max(map(len, rows))), config.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.arange(ids.shape[1]) < np.array([len(row) for row in rows])[:, None]


def check(actual, arrays, name, kind):
    """Fail unless ``actual`` is as accurate as transformers' own result called ``name``."""
    peer, truth = (arrays[f"{name}.{k}"] for k in KINDS)
    assert actual.dtype == kind
    if kind == "float32":
        assert_as_accurate(actual, peer, truth)
    else:
        np.testing.assert_allclose(actual, truth, rtol=0, atol=FLOAT64, equal_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states(card, kind):
    """The embeddings and every layer's output at every real token of a padded batch are transformers' (F1-F6)."""
    arrays, _ = golden(card)
    output, mask = run(card, kind)
    tokens = arrays[f"hidden.{kind}"].shape[1]

    check(np.stack([layer[mask][:tokens] for layer in output.hidden_states]), arrays, "hidden", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_on_each_library(card, kind, xp):
    """The same forward pass runs on the arrays of each library: on a GPU, those of CuPy."""
    arrays, _ = golden(card)
    model = BertModel.from_pretrained(twin(card), dtype=kind)
    ids, mask = padded(split(arrays["ids"], arrays["lengths"]), model.config)
    hidden = bert(on_library(model.params, xp), model.config, *map(xp.asarray, (ids, mask, np.zeros_like(ids))))
    tokens = arrays[f"hidden.{kind}"].shape[1]

    assert isinstance(hidden, xp.ndarray)
    hidden = hidden if xp is np else hidden.get()
    last = {f"last.{k}": arrays[f"hidden.{k}"][-1] for k in KINDS}
    check(hidden[mask][:tokens], last, "last", kind)


def on_library(parameters, xp):
    """Return parameters as arrays of a library."""
    if parameters is None or isinstance(parameters, np.ndarray):
        return None if parameters is None else xp.asarray(parameters)
    each = [on_library(part, xp) for part in parameters]
    return type(parameters)(*each) if hasattr(parameters, "_fields") else tuple(each)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_maps(card, kind):
    """The last layer's attention weights of the first text are transformers', and padding gets none."""
    arrays, _ = golden(card)
    rows = split(arrays["ids"], arrays["lengths"])[:-1]
    model = BertModel.from_pretrained(twin(card), dtype=kind)
    ids, mask = padded([rows[1], rows[0], *rows], model.config)
    weights = model(ids, mask, output_attentions=True).attentions[-1][1]
    length = len(rows[0])

    check(weights[:, :length, :length], arrays, "attention", kind)
    assert not weights[:, :, length:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_pooler_output(card, kind):
    """The pooler's output is transformers' (F5); DistilBERT has none."""
    output, arrays = run(card, kind)[0].pooler_output, golden(card)[0]

    if "pooler.float32" not in arrays:
        assert (MODELS[card]["model_type"], output) == ("distilbert", None)
    else:
        check(output, arrays, "pooler", kind)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_pooling_modes(card, mode, kind):
    """Every pooling mode gives sentence-transformers' vector of every text, the long one included (P2-P7)."""
    output, mask = run(card, kind)

    check(pool([mode], output.last_hidden_state, mask), golden(card)[0], f"pooled.{mode}", kind)


def test_encode(card):
    """``encode`` returns sentence-transformers' vectors, by the card's own tokenizer, limit and pooling."""
    arrays, texts = golden(card)
    vectors = SentenceEncoder(twin(card), on_truncate="ignore").encode(texts)
    mode = MODELS[card]["pooling_mode"]

    assert vectors.dtype == np.float32
    assert_as_accurate(vectors, arrays["embeddings"], arrays[f"pooled.{mode}.float64"])


def test_encode_in_float64(card):
    """A float64 encoder is a thousand times closer still."""
    arrays, texts = golden(card)
    vectors = SentenceEncoder(twin(card), on_truncate="ignore", dtype="float64").encode(texts, batch_size=2)

    np.testing.assert_allclose(
        vectors, arrays[f"pooled.{MODELS[card]['pooling_mode']}.float64"], rtol=0, atol=FLOAT64, equal_nan=False
    )


def test_token_ids(card):
    """The ids are transformers', the long text cut to the card's limit (T1-T5, L10)."""
    arrays, texts = golden(card)
    encoder = SentenceEncoder(twin(card))
    batch = encoder.tokenize(texts)

    assert encoder.max_seq_length == MODELS[card]["max_seq_length"] == arrays["lengths"].max()
    np.testing.assert_array_equal(batch["attention_mask"].sum(axis=1), arrays["lengths"])
    np.testing.assert_array_equal(batch["input_ids"][batch["attention_mask"] == 1], arrays["ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_is_left_out_of_the_pooling(card, kind):
    """With include_prompt off, the prompt and [CLS] are not pooled (P9)."""
    arrays, texts = golden(card)
    encoder = SentenceEncoder(twin(card), on_truncate="ignore", dtype=kind)
    encoder.set_pooling_include_prompt(False)
    _, metadata = load(GOLDEN / card / "golden.safetensors")

    check(encoder.encode(texts, prompt=metadata["prompt"]), arrays, "prompt_excluded", kind)


def test_repo_is_small(card):
    """A twin and its golden file take less than 200 kB."""
    assert sum(path.stat().st_size for path in (GOLDEN / card).rglob("*") if path.is_file()) < 200_000
