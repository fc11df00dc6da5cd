"""BertModel: the reference forward pass with the parameters of a checkpoint, with the interface of transformers."""

from typing import Any, NamedTuple, Self

import numpy as np

from minibert import model, params
from minibert.config import BertConfig
from minibert.engine.precisions import compute_dtype
from minibert.files import checkpoint, hub
from minibert.model import Tap, untapped
from minibert.repo import ModelRepo
from minibert.safe.regular import is_there
from minibert.typing import Array, Bool, DType, Float, Int, Num, PathLike

__all__ = ["BertModel", "BertOutput"]


class BertOutput(NamedTuple):
    """The result of BERT. The fields have the names of transformers' BertModel.

    Attributes:
        last_hidden_state: The token vectors after the last layer, ``(B, S, H)``.
        pooler_output: The pooled first token, ``(B, H)``; None if the checkpoint has no pooler.
        hidden_states: On request, L + 1 arrays ``(B, S, H)``: the embeddings, then the output of each layer.
        attentions: On request, L arrays ``(B, h, S, S)``: each layer's attention weights, query by key.
    """

    last_hidden_state: Float[Array, "B S H"]
    pooler_output: Float[Array, "B H"] | None
    hidden_states: tuple[Float[Array, "B S H"], ...] | None
    attentions: tuple[Float[Array, "B h S S"], ...] | None


class BertModel:
    """BERT with the parameters of a checkpoint.

    Attributes:
        config: The model's :class:`~minibert.config.BertConfig`.
        params: The model's :class:`~minibert.params.BertParams`, in the shapes of the checkpoint.

    Example:
        >>> model = BertModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> model(input_ids=[[101, 7592, 102]]).last_hidden_state.shape  # doctest: +SKIP
        (1, 3, 384)
    """

    def __init__(self, config: BertConfig, parameters: params.BertParams) -> None:
        self.config = config
        self.params = parameters

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: PathLike,
        *,
        dtype: DType = None,
        revision: str | None = None,
        cache_folder: PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Return the BertModel of a local folder or a hub repo.

        Args:
            model_name_or_path: The folder, or the repo id.
            dtype: ``float32`` (default) or ``float64``: the precision of the parameters and of all arithmetic.
            revision: Branch, tag or commit of the hub repo.
            cache_folder: The folder of downloaded hub repos; by default the Hugging Face cache.
            local_files_only: Whether to use only files in the cache.
            token: Access token for private repos; by default the token of the logged-in user.

        Raises:
            ModelFileError: A file of the repo cannot be used.
            HubError: The repo cannot be fetched.
            ValueError: ``dtype`` is not one of these.
        """
        folder = hub.resolve(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        if not is_there(folder / "config.json"):  # sentence-transformers 0 puts it in a subfolder
            folder = ModelRepo.open(folder).transformer_folder
        config = BertConfig.from_file(folder / "config.json")
        return cls(config, checkpoint.load_bert(folder, config, compute_dtype(dtype)))

    def __call__(
        self,
        input_ids: Int[Array, "B S"] | list[list[int]],
        attention_mask: Num[Array, "B S"] | list[list[int]] | None = None,
        token_type_ids: Int[Array, "B S"] | list[list[int]] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        tap: Tap = untapped,
    ) -> BertOutput:
        """Return the hidden states of ``B`` texts of ``S`` tokens.

        Args:
            input_ids: Token ids.
            attention_mask: 1 at real tokens and 0 at padding; by default, all tokens are real.
            token_type_ids: 0 in the first text of a pair and 1 in the second; by default 0.
            output_hidden_states: Whether to return the hidden states of every layer.
            output_attentions: Whether to return the attention weights of every layer.
            tap: Takes the name and the value of each result of :func:`minibert.model.bert`, and returns the value to
                continue with. With the default, nothing changes.

        Raises:
            ValueError: The arrays are not two-dimensional, their shapes differ, or they have no or too many tokens.
            IndexError: An id is outside its table.
        """
        ids = self._ids("input_ids", input_ids, self.config.vocab_size)
        if ids.shape[1] == 0 or ids.shape[1] > self.config.max_tokens:
            raise ValueError(
                f"a text must have from 1 to {self.config.max_tokens} tokens, the positions of the model; "
                f"input_ids has {ids.shape[1]}."
            )
        types = np.zeros_like(ids)
        if token_type_ids is not None:
            types = self._ids("token_type_ids", token_type_ids, self.config.type_vocab_size)
        mask: Bool[Array, "B S"] = np.ones(ids.shape, bool)
        if attention_mask is not None:
            mask = np.asarray(attention_mask) != 0
        for name, array in (("token_type_ids", types), ("attention_mask", mask)):
            if array.shape != ids.shape:
                raise ValueError(f"{name} must have the shape of input_ids, {ids.shape}; it has {array.shape}.")
        hidden_states: list[Array] = []
        attentions: list[Array] = []

        def collect(name: str, value: Array) -> Array:
            value = tap(name, value)
            if name.endswith(".x") and output_hidden_states:
                hidden_states.append(value)
            if name.endswith(".weights") and output_attentions:
                attentions.append(value)
            return value

        x = model.bert(self.params, self.config, ids, mask, types, collect)
        return BertOutput(
            last_hidden_state=x,
            pooler_output=None if self.params.pooler is None else model.pool_first_token(self.params.pooler, x),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @staticmethod
    def _ids(name: str, values: Any, rows: int) -> Int[Array, "B S"]:
        ids = np.asarray(values)
        if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"{name} must be whole numbers of shape (texts, tokens); it is {ids.dtype} {ids.shape}.")
        if ids.size and not (ids.min() >= 0 and ids.max() < rows):
            raise IndexError(f"{name} must be from 0 to {rows - 1}; it has {ids.min()} to {ids.max()}.")
        return ids
