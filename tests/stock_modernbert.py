"""Encoder and Decoder beside stock ModernBERT and its decoder with the same weights."""

import torch
from transformers import PreTrainedModel

import hf_tiny_transformer as ours
from hf_tiny_transformer.convert.modernbert import stock_weights, to_stock

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


def our_model(family: str, task: str, **overrides) -> PreTrainedModel:
    """Norms start at 1 and biases at 0, where a swapped pair would not show: all weights are shaken."""
    config = getattr(ours, f"TinyTransformer{family}Config")(**SHAPE, initializer_range=0.2, **overrides)
    model = getattr(ours, f"TinyTransformer{family}{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def assert_same_function(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Hidden states of all layers, outputs, loss and gradients, to 1e-5."""
    stock = to_stock(model)
    expected, got = stock(**inputs, output_hidden_states=True), model(**inputs, output_hidden_states=True)

    for mine, reference in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert_close(mine, reference)
    assert got.keys() - {"past_key_values"} == expected.keys() - {"past_key_values"}
    for key in got.keys() - {"hidden_states", "past_key_values"}:
        assert_close(got[key], expected[key])
    for outputs in (got, expected):
        (outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().mean()).backward()
    mapped = stock_weights(model, {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)})
    for name, parameter in stock.named_parameters():
        if name in mapped:
            assert_close(mapped[name], parameter.grad)
        else:  # stock gives both layers of this head a bias or none: ours has no such one, and stock's is zero
            assert name == "head.dense.bias" and not parameter.any()
