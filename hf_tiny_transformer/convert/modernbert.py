"""Convert Encoder to and from stock `modernbert`, Decoder to and from `modernbert-decoder`: the same functions.

Stock fuses the gate (the activated half) and up matrices of the feed-forward network. ModernBERT, but not its decoder,
also fuses q, k and v.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import ModernBertConfig, ModernBertDecoderConfig, PreTrainedModel

from ..common.checkpoints import config_problem
from ..common.errors import UserError
from ..configuration_decoder import TinyTransformerDecoderConfig
from ..configuration_encoder import TinyTransformerEncoderConfig
from ..configuration_trunk import FULL, LAYER_TYPES, SLIDING
from ..modeling_decoder import TinyTransformerDecoderForCausalLM, TinyTransformerDecoderForSequenceClassification
from ..modeling_encoder import TinyTransformerEncoderForQuestionAnswering
from . import rename, stock_name

# our matrices with the same stock name form one stock matrix, in the order of our modules
RENAMES = [
    ("embed_tokens", "embeddings.tok_embeddings"),
    ("embed_norm", "embeddings.norm"),
    ("attention_norm", "attn_norm"),
    (r"attention\.o_proj", "attn.Wo"),
    (r"mlp\.(gate|up)_proj", "mlp.Wi"),
    (r"mlp\.down_proj", "mlp.Wo"),
    (r"^(model\.)?norm\.", r"\1final_norm."),
    ("^lm_head", "decoder"),
    ("^qa_outputs", "classifier"),
]
# config fields with the same name and meaning
_SAME_FIELDS = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "initializer_range", "norm_eps", "tie_word_embeddings", "pad_token_id"),
    *("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    *("id2label", "label2id", "problem_type", "local_attention", "layer_types"),
]
_ENCODER_FIELDS = ["classifier_pooling", "cls_token_id", "sep_token_id"]
_DECODER_FIELDS = ["use_cache", "bos_token_id", "eos_token_id"]
# the only values with which stock computes the same function as our families
_ONLY_VALUES = {"norm_bias": False, "attention_bias": False, "mlp_bias": False, "decoder_bias": True}


def config_from_stock(
    stock: ModernBertConfig | ModernBertDecoderConfig, source: str | Path = "config.json"
) -> TinyTransformerEncoderConfig | TinyTransformerDecoderConfig:
    """Return the Encoder's or Decoder's config of the same function; fields that no forward reads are dropped.

    Raises:
        UserError: A field cannot be expressed (a bias, another activation in the head, ...).
    """
    for name, only in {**_ONLY_VALUES, "classifier_activation": stock.hidden_activation}.items():
        if (value := getattr(stock, name)) != only:
            raise UserError(f"{source}: {name} is {value!r}; the families Encoder and Decoder support only {only!r}")
    is_decoder = isinstance(stock, ModernBertDecoderConfig)
    fields = {
        name: getattr(stock, name) for name in _SAME_FIELDS + (_DECODER_FIELDS if is_decoder else _ENCODER_FIELDS)
    }
    fields |= {"hidden_act": stock.hidden_activation, "rope_parameters": stock.rope_parameters}
    if SLIDING not in (stock.layer_types or ()):
        fields["rope_parameters"] = dict(stock.rope_parameters or {}).get("full_attention")
    elif stock.sliding_window != (stock.local_attention or 0) // 2:  # a decoder's file may hold both; this one is read
        fields["local_attention"] = 2 * stock.sliding_window
    try:
        return (TinyTransformerDecoderConfig if is_decoder else TinyTransformerEncoderConfig)(**fields)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {config_problem(error)}") from None


def our_weights(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of our model, given those of the stock model.

    Raises:
        UserError: The stock model has a bias that our model lacks, and that is not zero.
    """
    parts: defaultdict[str, list[str]] = defaultdict(list)
    weights: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        parts[_stock_weight(model, name)].append(name)
    for stock in tensors.keys() - parts.keys():
        if tensors[stock].any():
            raise UserError(f"{stock} is not zero; our family has no such bias (classifier_bias in config.json)")
    for stock, names in parts.items():
        # stock's Decoder classifier may have no bias
        tensor = tensors[stock] if stock in tensors else torch.zeros(len(model.config.id2label or {}))
        weights |= zip(names, tensor.chunk(len(names)), strict=True)
    return weights


def stock_weights(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors (weights or gradients) under their stock names, given those of our model's parameters."""
    parts = defaultdict(list)
    for name, tensor in tensors.items():
        parts[_stock_weight(model, name)].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _stock_weight(model: PreTrainedModel, name: str) -> str:
    is_decoder = isinstance(model.config, TinyTransformerDecoderConfig)
    # in stock's causal language model this part is `lm_head`, and the output matrix is `decoder`
    head = "lm_head." if isinstance(model, TinyTransformerDecoderForCausalLM) else "head."
    qkv = (r"attention\.(.)_proj", r"attn.\1_proj" if is_decoder else "attn.Wqkv")
    return rename(name, [*RENAMES, qkv, (r"^transform\.", head)])


def stock_config(model: PreTrainedModel) -> ModernBertConfig | ModernBertDecoderConfig:
    """Return the stock config of the same function.

    A Decoder classifier finds the last token of a text by `attention_mask`, stock by `pad_token_id`. They agree if
    texts are padded with that token, as tokenizers do.

    Raises:
        UserError: Stock has no such class, or cannot express a setting; the message names it.
    """
    name = stock_name(type(model))
    if not hasattr(transformers, name):
        advice = "publish the directory as it is, with its code (trust_remote_code=True)"
        raise UserError(f"no stock class computes the same function as {name}; {advice}")
    config = model.config
    if config.position_embedding_type != "rotary":
        raise UserError(
            f"position_embedding_type is {config.position_embedding_type!r}; stock ModernBERT supports only 'rotary'"
        )
    rope = {kind: dict(config.rope_parameters.get(kind, config.rope_parameters)) for kind in LAYER_TYPES}
    fields: dict[str, Any] = {
        **{name: getattr(config, name) for name in _SAME_FIELDS},
        "architectures": [name],
        "hidden_activation": config.hidden_act,
        "classifier_activation": config.hidden_act,
        "rope_parameters": rope,
    }
    stock: ModernBertConfig | ModernBertDecoderConfig
    if isinstance(config, TinyTransformerDecoderConfig):
        stock = ModernBertDecoderConfig(**fields | _decoder_fields(model, config))
    else:
        fields |= {"cls_token_id": config.cls_token_id, "sep_token_id": config.sep_token_id}
        fields |= {"bos_token_id": config.cls_token_id, "eos_token_id": config.sep_token_id}
        fields["classifier_pooling"] = config.classifier_pooling
        if isinstance(model, TinyTransformerEncoderForQuestionAnswering):  # stock sizes this layer by labels
            fields |= {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
        stock = ModernBertConfig(**fields)
    # for transformers 4, and for programs that read config.json themselves
    for n in range(1, config.num_hidden_layers + 1):
        if config.layer_types == [SLIDING if i % n else FULL for i in range(config.num_hidden_layers)]:
            stock.global_attn_every_n_layers = n
            break
    stock.global_rope_theta, stock.local_rope_theta = (rope[kind]["rope_theta"] for kind in LAYER_TYPES)
    return stock


def _decoder_fields(model: PreTrainedModel, config: TinyTransformerDecoderConfig) -> dict[str, Any]:
    """Return ids for all special tokens; stock requires them, though its forward reads only `pad_token_id`."""
    is_classifier = isinstance(model, TinyTransformerDecoderForSequenceClassification)
    if config.pad_token_id is None and is_classifier:
        raise UserError("pad_token_id is null, but stock finds a text's last token by it; set it to the tokenizer's")
    pad = config.pad_token_id or 0
    start = pad if config.bos_token_id is None else config.bos_token_id
    return {
        "pad_token_id": pad,
        "bos_token_id": start,
        "eos_token_id": config.eos_token_id,
        "cls_token_id": start,
        "sep_token_id": config.eos_token_id if isinstance(config.eos_token_id, int) else pad,
        "use_cache": config.use_cache,
        "classifier_bias": is_classifier,
    }
