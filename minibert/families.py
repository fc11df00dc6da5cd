"""The families of encoders that minibert implements: what config and checkpoint of each call the parts of BERT.

They share BERT's forward pass. Everything that distinguishes a family is data in this module. The source of the names
and values is transformers, https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models

    Liu et al. 2019, "RoBERTa", https://arxiv.org/abs/1907.11692
    Conneau et al. 2019, "XLM-R", https://arxiv.org/abs/1911.02116
    Martin et al. 2019, "CamemBERT", https://arxiv.org/abs/1911.03894
    Sanh et al. 2019, "DistilBERT", https://arxiv.org/abs/1910.01108
    Song et al. 2020, "MPNet", https://arxiv.org/abs/2004.09297
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["FAMILIES", "TYPES", "Family"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Family(NamedTuple):
    """What distinguishes a family from BERT.

    Attributes:
        classes: The names in ``architectures`` begin with it.
        tokenizer: The tokenizer's class if no file names one.
        keys: The keys of ``config.json`` for some fields of :class:`~minibert.config.BertConfig`; a later key wins. All
            other fields have BERT's keys.
        defaults: Fields that have another default than in BERT.
        fixed: Fields that the code of the family fixes: what ``config.json`` says about them has no effect.
        tensors: Parts of BERT's names of tensors, and what the family calls them. They are replaced in this order.
        absent: Tensors of BERT that the family does not have. Token types are zeros then.
        heads: The prefixes of the tensors of heads, which an encoder does not use.
        positions_after: Positions begin after this id, and skip tokens with it: a field of BertConfig, or a number that
            the code of the family fixes. None if positions begin at 0.
    """

    classes: str
    tokenizer: str = "BertTokenizer"
    keys: Mapping[str, str] = _NOTHING
    defaults: Mapping[str, Any] = _NOTHING
    fixed: Mapping[str, Any] = _NOTHING
    tensors: Mapping[str, str] = _NOTHING
    absent: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("cls.", "classifier.", "qa_outputs.")
    positions_after: str | int | None = None


#: The canonical name of the table of token types.
TYPES = "embeddings.token_type_embeddings.weight"
_ROBERTA = Family(
    classes="Roberta",
    tokenizer="RobertaTokenizer",
    defaults={"pad_token_id": 1},
    heads=("lm_head.", "classifier.", "qa_outputs."),
    positions_after="pad_token_id",
)

#: The families by ``model_type`` in ``config.json``.
FAMILIES: Mapping[str, Family] = {
    "bert": Family("Bert"),
    "roberta": _ROBERTA._replace(defaults={"pad_token_id": 1, "vocab_size": 50265}),
    "xlm-roberta": _ROBERTA._replace(classes="XLMRoberta", tokenizer="XLMRobertaTokenizer"),
    "camembert": _ROBERTA._replace(classes="Camembert", tokenizer="CamembertTokenizer"),
    "distilbert": Family(
        classes="DistilBert",
        keys={
            "dim": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "hidden_size": "hidden_size",
            "num_hidden_layers": "num_hidden_layers",
            "num_attention_heads": "num_attention_heads",
            "hidden_dim": "intermediate_size",
            "activation": "hidden_act",
        },
        defaults={"num_hidden_layers": 6},
        fixed={"layer_norm_eps": 1e-12, "type_vocab_size": 1},
        tensors={
            "encoder.layer.": "transformer.layer.",
            ".attention.self.query": ".attention.q_lin",
            ".attention.self.key": ".attention.k_lin",
            ".attention.self.value": ".attention.v_lin",
            ".attention.output.dense": ".attention.out_lin",
            ".attention.output.LayerNorm": ".sa_layer_norm",
            ".intermediate.dense": ".ffn.lin1",
            ".output.dense": ".ffn.lin2",
            ".output.LayerNorm": ".output_layer_norm",
        },
        absent=(TYPES, "pooler.dense.weight", "pooler.dense.bias"),
        heads=(
            "vocab_transform.",
            "vocab_layer_norm.",
            "vocab_projector.",
            "pre_classifier.",
            "classifier.",
            "qa_outputs.",
        ),
    ),
    "mpnet": Family(
        classes="MPNet",
        tokenizer="MPNetTokenizer",
        defaults={"vocab_size": 30527, "pad_token_id": 1, "relative_attention_num_buckets": 32},
        fixed={"type_vocab_size": 1},
        tensors={
            ".attention.self.query": ".attention.attn.q",
            ".attention.self.key": ".attention.attn.k",
            ".attention.self.value": ".attention.attn.v",
            ".attention.output.dense": ".attention.attn.o",
            ".attention.output.LayerNorm": ".attention.LayerNorm",
        },
        absent=(TYPES,),
        heads=("lm_head.", "classifier.", "qa_outputs."),
        positions_after=1,
    ),
}
