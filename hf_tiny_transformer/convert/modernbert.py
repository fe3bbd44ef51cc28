"""Convert Encoder to stock `modernbert` and Decoder to stock `modernbert-decoder`, which compute the same function.

Stock fuses the gate (the activated half) and up matrices of the feed-forward network. ModernBERT, but not its decoder,
also fuses q, k and v.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import (
    ModernBertConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForSequenceClassification,
    PreTrainedModel,
)

import hf_tiny_transformer

from ..common.errors import UserError
from ..configuration_decoder import TinyTransformerDecoderConfig
from ..configuration_encoder import TinyTransformerEncoderConfig
from ..families import FAMILIES
from ..modeling_decoder import TinyTransformerDecoderForCausalLM, TinyTransformerDecoderForSequenceClassification
from ..modeling_encoder import TinyTransformerEncoderForQuestionAnswering

STOCK_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    getattr(hf_tiny_transformer, name): getattr(transformers, name.replace(ours, stock))
    for config_class, ours, stock in (
        (TinyTransformerEncoderConfig, "TinyTransformerEncoder", "ModernBert"),
        (TinyTransformerDecoderConfig, "TinyTransformerDecoder", "ModernBertDecoder"),
    )
    for name in FAMILIES[config_class].values()
}

# (ours, stock) without .weight or .bias; {n} is the layer's number. Several of our matrices form one stock matrix.
_LAYER = "model.layers.{n}"
_QKV = [f"{_LAYER}.attention.{part}_proj" for part in "qkv"]
_COMMON = [
    (["model.embed_tokens"], "model.embeddings.tok_embeddings"),
    (["model.embed_norm"], "model.embeddings.norm"),
    ([f"{_LAYER}.attention_norm"], f"{_LAYER}.attn_norm"),
    ([f"{_LAYER}.attention.o_proj"], f"{_LAYER}.attn.Wo"),
    ([f"{_LAYER}.mlp_norm"], f"{_LAYER}.mlp_norm"),
    ([f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"], f"{_LAYER}.mlp.Wi"),
    ([f"{_LAYER}.mlp.down_proj"], f"{_LAYER}.mlp.Wo"),
    (["model.norm"], "model.final_norm"),
    (["lm_head"], "decoder"),
    (["classifier"], "classifier"),
    (["qa_outputs"], "classifier"),
]
# config fields with the same name and meaning
_SAME_FIELDS = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "initializer_range", "norm_eps", "tie_word_embeddings", "pad_token_id"),
    *("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    *("id2label", "label2id", "problem_type"),
]
_FUSED_QKV = [(_QKV, f"{_LAYER}.attn.Wqkv")]
_SEPARATE_QKV = [([name], f"{_LAYER}.attn.{part}_proj") for name, part in zip(_QKV, "qkv", strict=True)]


def to_stock(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stock model of the same function and dtype, in evaluation mode.

    A Decoder classifier finds the last token of a text by `attention_mask`, stock by `pad_token_id`. They agree if
    texts are padded with that token, as tokenizers do.

    Raises:
        UserError: As of `stock_config`.
    """
    config = stock_config(model)
    stock_class = STOCK_CLASSES[type(model)]
    stock = stock_class(config).to(model.dtype).eval()
    weights = stock_weights(model, model.state_dict())
    if stock_class is ModernBertDecoderForSequenceClassification:
        # in stock, one field gives both layers of the head a bias; our first layer has none
        weights["head.dense.bias"] = torch.zeros_like(stock.head.dense.bias)
    stock.load_state_dict(weights, strict=True)
    if model.can_generate():
        stock.generation_config = model.generation_config
    return stock


def stock_weights(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors (weights or gradients) under their stock names, given those of our model's parameters."""
    is_trunk = model.base_model is model
    renamed = {}
    for parts, stock_name in _renames(model):
        for n in range(model.config.num_hidden_layers if "{n}" in stock_name else 1):
            for kind in (".weight", ".bias"):
                names = [part.format(n=n) + kind for part in parts]
                if is_trunk:
                    names = [name.removeprefix("model.") for name in names]
                if names[0] in tensors:
                    name = stock_name.format(n=n) + kind
                    renamed[name.removeprefix("model.") if is_trunk else name] = torch.cat([tensors[n] for n in names])
    return renamed


def stock_config(model: PreTrainedModel) -> ModernBertConfig | ModernBertDecoderConfig:
    """Return the stock config of the same function.

    Raises:
        UserError: Stock has no such class, or cannot express a setting; the message names it.
    """
    if type(model) not in STOCK_CLASSES:
        raise UserError(f"{type(model).__name__} has no stock class")
    config = model.config
    if config.position_embedding_type != "rotary":
        raise UserError(
            f"position_embedding_type is {config.position_embedding_type!r}; stock ModernBERT supports only 'rotary'"
        )
    rope = dict(config.rope_parameters)
    fields = {
        **{name: getattr(config, name) for name in _SAME_FIELDS},
        "hidden_activation": config.hidden_act,
        "classifier_activation": config.hidden_act,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)},
        **(_decoder_fields(model) if isinstance(config, TinyTransformerDecoderConfig) else _encoder_fields(model)),
    }
    stock_class = STOCK_CLASSES[type(model)]
    stock = stock_class.config_class(**fields, architectures=[stock_class.__name__])
    # for transformers 4, and for programs that read config.json themselves
    stock.global_attn_every_n_layers = 1
    stock.global_rope_theta = stock.local_rope_theta = rope["rope_theta"]
    return stock


def _encoder_fields(model: PreTrainedModel) -> dict[str, Any]:
    config: TinyTransformerEncoderConfig = model.config
    fields = {
        "classifier_pooling": config.classifier_pooling,
        "cls_token_id": config.cls_token_id,
        "sep_token_id": config.sep_token_id,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
    }
    if isinstance(model, TinyTransformerEncoderForQuestionAnswering):  # stock sizes this layer by labels: start, end
        fields |= {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    return fields


def _decoder_fields(model: PreTrainedModel) -> dict[str, Any]:
    """Return ids for all special tokens; stock requires them, though its forward reads only `pad_token_id`."""
    config: TinyTransformerDecoderConfig = model.config
    is_classifier = isinstance(model, TinyTransformerDecoderForSequenceClassification)
    if config.pad_token_id is None and is_classifier:
        raise UserError("pad_token_id is null, but stock finds a text's last token by it; set it to the tokenizer's")
    pad = 0 if config.pad_token_id is None else config.pad_token_id
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


def _renames(model: PreTrainedModel) -> list[tuple[list[str], str]]:
    is_encoder = isinstance(model.config, TinyTransformerEncoderConfig)
    # in stock's causal language model this part is `lm_head`, and the output matrix is `decoder`
    head = "lm_head" if isinstance(model, TinyTransformerDecoderForCausalLM) else "head"
    transform = [([f"transform.{part}"], f"{head}.{part}") for part in ("dense", "norm")]
    return [*_COMMON, *transform, *(_FUSED_QKV if is_encoder else _SEPARATE_QKV)]
