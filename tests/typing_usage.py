"""How the public names are used, for the type checker: tools/check runs mypy on this file. It is never run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

from minibert import BertConfig, BertModel, SentenceEncoder, quantize_embeddings, study
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


def looked_into(encoder: SentenceEncoder, texts: Sequence[str]) -> study.Similarity:
    """Say which type each form of ``trace`` and ``explain`` returns."""
    halved: study.Edit = lambda value: value / 2  # noqa: E731  # the type is what is shown here
    assert_type(encoder.trace("a text"), study.Trace)
    assert_type(encoder.trace(texts, keep=["layers.*.x"], prompt="a prompt: "), list[study.Trace])
    assert_type(encoder.trace(iter(texts), keep="layers.0.x", prompt_name="query"), list[study.Trace])
    edited = encoder.trace("a text", edit={"layers.0.heads": study.without(0, 1), "layers.1.x": halved})
    assert_type(edited["layers.0.x"], npt.NDArray[Any])
    assert_type(edited.contributions(), dict[str, npt.NDArray[Any]])
    found = encoder.explain("a text", encoder.trace("another"), tolerance=0.001)
    assert_type(found.score, float)
    assert_type(found.vectors, npt.NDArray[Any] | None)
    assert_type(found.without_token, tuple[npt.NDArray[Any], npt.NDArray[Any]])
    return found


def mistakes(encoder: SentenceEncoder) -> None:
    """Do what a type checker must refuse."""
    encoder.encod("a text")  # type: ignore[attr-defined]
    encoder.half()  # type: ignore[attr-defined]
    encoder[0]  # type: ignore[index]
    encoder.truncate_dim = "64"  # type: ignore[assignment]
    encoder.trace(3)  # type: ignore[call-overload]
    encoder.trace("a text", edit={"layers.0.x": 3})  # type: ignore[dict-item]
    encoder.explain("a text", 3)  # type: ignore[arg-type]


def layers(folder: str) -> int:
    """Return how many hidden states there are."""
    model = BertModel.from_pretrained(folder, dtype="float64")
    config: BertConfig = model.config
    output = model([[101, 102]], output_hidden_states=True)
    try:
        return len(output.hidden_states or ()) + config.num_hidden_layers
    except MinibertError:
        return 0
