"""Convert Encoder to stock `modernbert` and Decoder to stock `modernbert-decoder`, which compute the same function.

Stock fuses the gate (the activated half) and up matrices of the feed-forward network. ModernBERT, but not its decoder,
also fuses q, k and v.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import transformers
from transformers import ModernBertConfig, ModernBertDecoderConfig, PreTrainedModel

from ..common.errors import UserError
from ..configuration_decoder import TinyTransformerDecoderConfig
from ..modeling_decoder import TinyTransformerDecoderForCausalLM, TinyTransformerDecoderForSequenceClassification
from ..modeling_encoder import TinyTransformerEncoderForQuestionAnswering
from . import rename

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
    *("id2label", "label2id", "problem_type"),
]


def stock_weights(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors (weights or gradients) under their stock names, given those of our model's parameters."""
    is_decoder = isinstance(model.config, TinyTransformerDecoderConfig)
    # in stock's causal language model this part is `lm_head`, and the output matrix is `decoder`
    head = "lm_head." if isinstance(model, TinyTransformerDecoderForCausalLM) else "head."
    qkv = (r"attention\.(.)_proj", r"attn.\1_proj" if is_decoder else "attn.Wqkv")
    parts = defaultdict(list)
    for name, tensor in tensors.items():
        parts[rename(name, [*RENAMES, qkv, (r"^transform\.", head)])].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def stock_config(model: PreTrainedModel) -> ModernBertConfig | ModernBertDecoderConfig:
    """Return the stock config of the same function.

    A Decoder classifier finds the last token of a text by `attention_mask`, stock by `pad_token_id`. They agree if
    texts are padded with that token, as tokenizers do.

    Raises:
        UserError: Stock has no such class, or cannot express a setting; the message names it.
    """
    name = type(model).__name__.replace("TinyTransformerEncoder", "ModernBert")
    name = name.replace("TinyTransformerDecoder", "ModernBertDecoder")
    if not hasattr(transformers, name):
        advice = "publish the directory as it is, with its code (trust_remote_code=True)"
        raise UserError(f"no stock class computes the same function as {name}; {advice}")
    config = model.config
    if config.position_embedding_type != "rotary":
        raise UserError(
            f"position_embedding_type is {config.position_embedding_type!r}; stock ModernBERT supports only 'rotary'"
        )
    rope = dict(config.rope_parameters)
    fields: dict[str, Any] = {
        **{name: getattr(config, name) for name in _SAME_FIELDS},
        "architectures": [name],
        "hidden_activation": config.hidden_act,
        "classifier_activation": config.hidden_act,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)},
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
    stock.global_attn_every_n_layers = 1
    stock.global_rope_theta = stock.local_rope_theta = rope["rope_theta"]
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
