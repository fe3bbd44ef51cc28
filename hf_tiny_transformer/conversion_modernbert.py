"""Encoder -> stock `modernbert`, Decoder -> stock `modernbert-decoder`: the same function, which transformers computes
without this package.

Stock fuses gate (the activated half) and up into one matrix, and ModernBERT, not its decoder, also q, k and v.
"""

import torch
from transformers import (
    ModernBertConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    ModernBertDecoderForSequenceClassification,
    ModernBertDecoderModel,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    PreTrainedModel,
)

from .configuration_decoder import TinyTransformerDecoderConfig
from .configuration_encoder import TinyTransformerEncoderConfig
from .configuration_trunk import TinyTransformerTrunkConfig
from .modeling_decoder import (
    TinyTransformerDecoderForCausalLM,
    TinyTransformerDecoderForSequenceClassification,
    TinyTransformerDecoderModel,
)
from .modeling_encoder import (
    TinyTransformerEncoderForMaskedLM,
    TinyTransformerEncoderForMultipleChoice,
    TinyTransformerEncoderForQuestionAnswering,
    TinyTransformerEncoderForSequenceClassification,
    TinyTransformerEncoderForTokenClassification,
    TinyTransformerEncoderModel,
)
from .runs import UserError

STOCK_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    TinyTransformerEncoderModel: ModernBertModel,
    TinyTransformerEncoderForMaskedLM: ModernBertForMaskedLM,
    TinyTransformerEncoderForSequenceClassification: ModernBertForSequenceClassification,
    TinyTransformerEncoderForTokenClassification: ModernBertForTokenClassification,
    TinyTransformerEncoderForQuestionAnswering: ModernBertForQuestionAnswering,
    TinyTransformerEncoderForMultipleChoice: ModernBertForMultipleChoice,
    TinyTransformerDecoderModel: ModernBertDecoderModel,
    TinyTransformerDecoderForCausalLM: ModernBertDecoderForCausalLM,
    TinyTransformerDecoderForSequenceClassification: ModernBertDecoderForSequenceClassification,
}

# (ours, stock) without .weight or .bias; {n} is the layer's number. Several of ours are one of stock's, stacked.
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
_FUSED_QKV = [(_QKV, f"{_LAYER}.attn.Wqkv")]
_SEPARATE_QKV = [([name], f"{_LAYER}.attn.{part}_proj") for name, part in zip(_QKV, "qkv", strict=True)]


def to_stock(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model of the same function and dtype, in evaluation mode.

    A Decoder classifier finds a text's last token by `attention_mask`, stock by `pad_token_id`: they agree where
    padding is made of that token, as tokenizers do.

    Raises:
        UserError: stock has no such class, or can't express a setting.
    """
    if type(model) not in STOCK_CLASSES:
        raise UserError(f"{type(model).__name__} has no stock partner")
    stock_class = STOCK_CLASSES[type(model)]
    stock = stock_class(stock_config(model)).to(model.dtype).eval()
    weights = stock_weights(model, model.state_dict())
    if stock_class is ModernBertDecoderForSequenceClassification:
        # one field gives both of stock's layers a bias; our first has none
        weights["head.dense.bias"] = torch.zeros_like(stock.head.dense.bias)
    stock.load_state_dict(weights, strict=True)
    if model.can_generate():
        stock.generation_config = model.generation_config
    return stock


def stock_weights(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors`, which go by the names of `model`'s parameters (weights, or gradients), under the stock names."""
    is_trunk = not hasattr(model, model.base_model_prefix)
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
    """The stock configuration of the same function.

    Raises:
        UserError: a setting that stock can't express; the message names it.
    """
    config = model.config
    if config.position_embedding_type != "rotary":
        raise UserError(
            f"position_embedding_type is {config.position_embedding_type!r}; stock ModernBERT has rotary positions only"
        )
    rope = dict(config.rope_parameters)
    fields = {
        **{name: getattr(config, name) for name in _same_fields(config)},
        "hidden_activation": config.hidden_act,
        "classifier_activation": config.hidden_act,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)},
        **(_decoder_fields(model) if isinstance(config, TinyTransformerDecoderConfig) else _encoder_fields(model)),
    }
    stock = STOCK_CLASSES[type(model)].config_class(**fields)
    # what transformers 4, and programs that read config.json by themselves, know of this
    stock.global_attn_every_n_layers = 1
    stock.global_rope_theta = stock.local_rope_theta = rope["rope_theta"]
    return stock


def _same_fields(config: TinyTransformerTrunkConfig) -> list[str]:
    """What is called the same and means the same."""
    return [
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("max_position_embeddings", "initializer_range", "norm_eps", "tie_word_embeddings", "pad_token_id"),
        *("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
        *("id2label", "label2id", "problem_type"),
    ]


def _encoder_fields(model: PreTrainedModel) -> dict:
    config: TinyTransformerEncoderConfig = model.config
    fields = {
        "classifier_pooling": config.classifier_pooling,
        "cls_token_id": config.cls_token_id,
        "sep_token_id": config.sep_token_id,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
    }
    if isinstance(model, TinyTransformerEncoderForQuestionAnswering):  # start and end: stock's layer is sized by labels
        fields |= {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    return fields


def _decoder_fields(model: PreTrainedModel) -> dict:
    """Stock's decoder wants numbers for all its special tokens, though no forward reads any but the padding's."""
    config: TinyTransformerDecoderConfig = model.config
    is_classifier = isinstance(model, TinyTransformerDecoderForSequenceClassification)
    if config.pad_token_id is None and is_classifier:
        raise UserError("pad_token_id is null; stock finds a text's last token by it: set it to the tokenizer's")
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
    # stock's causal language model calls this part lm_head, and the output matrix `decoder`
    head = "lm_head" if isinstance(model, TinyTransformerDecoderForCausalLM) else "head"
    transform = [([f"transform.{part}"], f"{head}.{part}") for part in ("dense", "norm")]
    return [*_COMMON, *transform, *(_FUSED_QKV if is_encoder else _SEPARATE_QKV)]
