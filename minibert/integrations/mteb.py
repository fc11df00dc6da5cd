"""A model for MTEB: ``mteb.evaluate(MinibertModel(encoder), tasks)``. MTEB itself imports PyTorch."""

import os
from typing import Any

from minibert.encoder import SentenceEncoder
from minibert.integrations.common import installed
from minibert.typing import Array, Float

with installed("mteb"):
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType


class MinibertModel(AbsEncoder):
    """The vectors of ``encode_query``, ``encode_document`` and ``encode``, as a task asks for them.

    Args:
        encoder: The model.
        name: The name in the results, such as ``"organization/model"``. By default, it is ``"minibert/"`` with the
            last part of the model's name. The revision in the results is the fingerprint of the model.
    """

    def __init__(self, encoder: SentenceEncoder, name: str | None = None) -> None:
        self.model = encoder
        model = os.path.basename(os.fspath(encoder.get_params()["model_name_or_path"] or "built-in"))  # noqa: PTH119
        facts = {
            "loader": type(self),
            "name": name or f"minibert/{model}",
            "revision": encoder.fingerprint,
            "similarity_fn_name": ScoringFunction(encoder.similarity_fn_name),
            "embed_dim": encoder.get_embedding_dimension(),
            "max_tokens": encoder.max_seq_length,
            "experiment_kwargs": None if encoder.truncate_dim is None else {"truncate_dim": encoder.truncate_dim},
        }
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=facts)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> Float[Array, "n D"]:
        """Return the vectors of all texts in the batches of ``inputs``."""
        texts = [text for batch in inputs for text in batch["text"]]
        encode = {PromptType.query: self.model.encode_query, PromptType.document: self.model.encode_document}
        return encode.get(prompt_type, self.model.encode)(texts)
