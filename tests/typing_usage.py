"""How the public names are used, for the type checker: tools/check runs mypy on this file. It is never run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

from minibert import BertConfig, BertModel, SentenceEncoder, quantize_embeddings
from minibert.errors import MinibertError


def search(folder: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the scores of all pairs of texts."""
    encoder = SentenceEncoder(folder, truncate_dim=64, on_truncate="ignore", dtype=np.float32)
    vectors = encoder.encode(texts, normalize_embeddings=True, batch_size=8)
    quantize_embeddings(vectors, "int8")
    name: str = encoder.similarity_fn_name
    limit: int = encoder.max_seq_length
    count: int = encoder.truncation.count
    print(name, limit, count)
    return encoder.similarity(vectors, encoder.encode_query("a query"))


def outputs(encoder: SentenceEncoder, texts: Sequence[str]) -> None:
    """Say which type each form of ``encode`` returns."""
    assert_type(encoder.encode("a text"), npt.NDArray[Any])
    assert_type(encoder.encode(texts, None, "a prompt: ", batch_size=8, precision="binary"), npt.NDArray[Any])
    assert_type(encoder.encode("a text", output_value="token_embeddings"), npt.NDArray[Any])
    assert_type(encoder.encode(texts, output_value="token_embeddings"), list[npt.NDArray[Any]])
    assert_type(encoder.encode("a text", output_value=None), dict[str, Any])
    assert_type(encoder.encode(texts, output_value=None), list[dict[str, Any]])
    assert_type(encoder.prompts, dict[str, str])
    assert_type(encoder.truncate_dim, int | None)
    encoder.truncate_dim, encoder.on_truncate, encoder.include_prompt = 64, "error", False


def mistakes(encoder: SentenceEncoder) -> None:
    """Do what a type checker must refuse."""
    encoder.encod("a text")  # type: ignore[attr-defined]
    encoder.half()  # type: ignore[attr-defined]
    encoder[0]  # type: ignore[index]
    encoder.truncate_dim = "64"  # type: ignore[assignment]


def layers(folder: str) -> int:
    """Return how many hidden states there are."""
    model = BertModel.from_pretrained(folder, dtype="float64")
    config: BertConfig = model.config
    output = model([[101, 102]], output_hidden_states=True)
    try:
        return len(output.hidden_states or ()) + config.num_hidden_layers
    except MinibertError:
        return 0
