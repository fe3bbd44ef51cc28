"""The stock models that Encoder and Decoder are compared with: ModernBERT and its decoder, with our weights in them."""

import re

import torch
import transformers
from transformers import PreTrainedModel

import hf_tiny_transformer as ours

SHAPE = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "norm_eps": 1e-5,
    "pad_token_id": 0,
}
# our name (a regular expression) -> stock name; first the names that both stock families have
RENAMES = [
    (r"embed_tokens", "embeddings.tok_embeddings"),
    (r"embed_norm", "embeddings.norm"),
    (r"^(model\.)?norm\.", r"\1final_norm."),
    (r"attention_norm", "attn_norm"),
    (r"attention\.o_proj", "attn.Wo"),
    (r"attention\.(q|k|v|qkv)_proj", r"attn.\1_proj"),
    (r"mlp\.gate_up_proj", "mlp.Wi"),  # fused below
    (r"mlp\.down_proj", "mlp.Wo"),
    (r"qa_outputs", "classifier"),
    (r"lm_head", "decoder"),
]
RENAMES_OF = {
    "Encoder": [*RENAMES, (r"attn\.qkv_proj", "attn.Wqkv"), (r"^transform\.", "head.")],
    "DecoderForCausalLM": [*RENAMES, (r"^transform\.", "lm_head.")],
    "Decoder": [*RENAMES, (r"^transform\.", "head.")],
}


def our_model(family: str, task: str, **overrides) -> PreTrainedModel:
    """Norms start at 1 and biases at 0, where a swapped pair would not show: all weights are shaken."""
    config = getattr(ours, f"TinyTransformer{family}Config")(**SHAPE, initializer_range=0.2, **overrides)
    model = getattr(ours, f"TinyTransformer{family}{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def stock_weights(family: str, task: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights (or gradients) under the stock names.

    Stock fuses gate (the activated half) and up into one matrix, and ModernBERT, not its decoder, also q, k and v.
    """
    fused = {"gate_up_proj": ("gate_proj", "up_proj")}
    if family == "Encoder":
        fused["qkv_proj"] = ("q_proj", "k_proj", "v_proj")
    weights = dict(weights)
    for whole, parts in fused.items():
        for name in [name for name in weights if parts[0] in name]:
            tensors = [weights.pop(name.replace(parts[0], part)) for part in parts]
            weights[name.replace(parts[0], whole)] = torch.cat(tensors)
    renames = RENAMES_OF.get(f"{family}{task}", RENAMES_OF[family])
    return {rename(name, renames): tensor for name, tensor in weights.items()}


def rename(name: str, renames: list[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def stock_partner(family: str, task: str, model: PreTrainedModel) -> PreTrainedModel:
    """The stock model with our weights; each weight of either side must find its partner."""
    rope = {"rope_type": "default", "rope_theta": model.config.rope_parameters["rope_theta"]}
    # stock's defaults lie outside our vocabulary; its decoder insists on numbers, which no forward reads
    number = None if family == "Encoder" else 1
    ids = {"bos_token_id": number, "cls_token_id": number, "sep_token_id": number, "eos_token_id": None}
    pooling = {"classifier_pooling": model.config.classifier_pooling} if family == "Encoder" else {}
    name = {"Encoder": "ModernBert", "Decoder": "ModernBertDecoder"}[family]
    config = getattr(transformers, f"{name}Config")(
        **SHAPE,
        layer_types=["full_attention"] * SHAPE["num_hidden_layers"],
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        **ids,
        **pooling,
    )
    stock = getattr(transformers, f"{name}{task}")(config).eval()
    stock.load_state_dict(stock_weights(family, task, model.state_dict()), strict=True)
    return stock


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def assert_same_function(family: str, task: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Hidden states of all layers, outputs, loss and gradients, to 1e-5."""
    stock = stock_partner(family, task, model)
    expected, got = stock(**inputs, output_hidden_states=True), model(**inputs, output_hidden_states=True)

    for mine, reference in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert_close(mine, reference)
    assert got.keys() - {"past_key_values"} == expected.keys() - {"past_key_values"}
    for key in got.keys() - {"hidden_states", "past_key_values"}:
        assert_close(got[key], expected[key])
    for outputs in (got, expected):
        (outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().mean()).backward()
    mapped = stock_weights(family, task, {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)})
    for name, parameter in stock.named_parameters():
        assert_close(mapped[name], parameter.grad)
