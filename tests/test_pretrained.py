"""BertModel: what it accepts, and where it finds its files. Its numbers are compared in test_golden.py."""

import json

import numpy as np
import pytest
from support import copy_twin, twin

from minibert import BertModel

IDS = [[2, 7, 8, 3]]


@pytest.fixture(scope="module")
def model():
    """Return the smallest twin, with 80 words, 512 positions and 2 token types."""
    return BertModel.from_pretrained(twin("BertModel-128d"))


def test_outputs_on_request(model):
    """Hidden states and attention maps are None unless asked for; the names are transformers'."""
    output = model(IDS)

    assert output.last_hidden_state.shape == (1, 4, 16)
    assert output.pooler_output.shape == (1, 16)
    assert output.hidden_states is None
    assert output.attentions is None


def test_defaults(model):
    """Without a mask every token is real, without types all are 0."""
    explicit = model(IDS, attention_mask=[[1] * 4], token_type_ids=[[0] * 4])

    np.testing.assert_array_equal(model(IDS).last_hidden_state, explicit.last_hidden_state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": [[]]}, ValueError, "from 1 to 512 tokens, the positions of the model"),
        ({"input_ids": [[1] * 513]}, ValueError, "input_ids has 513"),
        ({"input_ids": [1, 2]}, ValueError, r"of shape \(texts, tokens\)"),
        ({"input_ids": [[0.5]]}, ValueError, "whole numbers"),
        ({"input_ids": [[80]]}, IndexError, "from 0 to 79; it has 80"),
        ({"input_ids": [[-1]]}, IndexError, "from 0 to 79; it has -1"),
        ({"input_ids": IDS, "token_type_ids": [[0, 0, 2, 0]]}, IndexError, "token_type_ids must be from 0 to 1"),
        ({"input_ids": IDS, "token_type_ids": [[0, 0]]}, ValueError, "token_type_ids must have the shape"),
        ({"input_ids": IDS, "attention_mask": [[1, 1]]}, ValueError, "attention_mask must have the shape"),
    ],
)
def test_bad_input(model, arguments, error, message):
    """Ids outside their table and arrays that do not fit are refused; numpy would wrap a negative id (F9)."""
    with pytest.raises(error, match=message):
        model(**arguments)


def test_all_masked_row_is_finite(model):
    """A text with no real token gives finite numbers, which mean nothing (F10)."""
    output = model([[0, 0, 0, 0], *IDS], attention_mask=[[0] * 4, [1] * 4])

    assert np.isfinite(output.last_hidden_state).all()
    np.testing.assert_allclose(output.last_hidden_state[1:], model(IDS).last_hidden_state, atol=2e-6)


def test_modules_are_not_its_business(tmp_path):
    """A repo with a module that minibert does not implement still has a BertModel."""
    copy_twin(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    modules.append({"idx": 2, "name": "2", "path": "2_CNN", "type": "sentence_transformers.models.CNN"})
    (tmp_path / "modules.json").write_text(json.dumps(modules), "utf-8")

    assert BertModel.from_pretrained(tmp_path).config.hidden_size == 16


def test_transformer_in_a_folder_of_its_own(tmp_path):
    """In the layout of sentence-transformers 0 the BertModel is in 0_Transformer."""
    copy_twin(tmp_path / "0_Transformer")
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules), "utf-8")

    assert BertModel.from_pretrained(tmp_path).config.hidden_size == 16


def test_dtype():
    """float32 by default, float64 on request, and nothing else on a CPU."""
    folder = twin("BertModel-128d")

    assert BertModel.from_pretrained(folder)(IDS).last_hidden_state.dtype == np.float32
    assert BertModel.from_pretrained(folder, dtype="float64")(IDS).last_hidden_state.dtype == np.float64
    with pytest.raises(ValueError, match="one of float32, float64 on a CPU; it is float16"):
        BertModel.from_pretrained(folder, dtype="float16")
