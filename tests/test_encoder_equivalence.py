"""Protects the claim that the Encoder family computes what stock ModernBERT with full attention computes."""

import re

import pytest
import torch
import transformers
from transformers import ModernBertConfig, PreTrainedModel

import hf_tiny_transformer as ours

SHARED = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "norm_eps": 1e-5,
    "pad_token_id": 0,
}


def stock_weights(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """An Encoder's weights under ModernBERT's names: fused q, k, v, and fused gate (the activated half) and up."""
    weights = encoder.state_dict()
    renamed = {}
    for name in weights:
        stock = name.replace("embed_tokens", "embeddings.tok_embeddings").replace("embed_norm", "embeddings.norm")
        stock = re.sub(r"^(model\.)?norm\.", r"\1final_norm.", stock).replace("lm_head", "decoder")
        stock = stock.replace("attention_norm", "attn_norm").replace("attention.o_proj", "attn.Wo")
        stock = stock.replace("mlp.down_proj", "mlp.Wo").replace("qa_outputs", "classifier")
        if "q_proj" in name:
            parts = [weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            renamed[name.replace("attention.q_proj", "attn.Wqkv")] = torch.cat(parts)
        elif "gate_proj" in name:
            renamed[name.replace("gate_proj", "Wi")] = torch.cat([weights[name], weights[name.replace("gate", "up")]])
        elif not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            renamed[stock] = weights[name]
    return renamed


def stock_partner(encoder: PreTrainedModel, task: str) -> PreTrainedModel:
    """The stock model with the encoder's weights; each weight of either side must find its partner."""
    rope = {"rope_type": "default", "rope_theta": encoder.config.rope_parameters["rope_theta"]}
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    config = ModernBertConfig(
        **SHARED,
        **no_ids,
        layer_types=["full_attention"] * SHARED["num_hidden_layers"],
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        classifier_pooling=encoder.config.classifier_pooling,
    )
    stock = getattr(transformers, f"ModernBert{task}")(config).eval()
    stock.load_state_dict(stock_weights(encoder), strict=True)
    return stock


def inputs_for(task: str) -> dict[str, torch.Tensor]:
    """A padded batch, and the labels that the task's loss asks for.

    What is padding the mask says; the pad id itself does not occur, since stock never trains its embedding
    (`padding_idx`) and we do where a loss reads it.
    """
    shape = (2, 3, 9) if task == "ForMultipleChoice" else (2, 9)
    ids, attention_mask = torch.randint(1, SHARED["vocab_size"], shape), torch.ones(shape, dtype=torch.long)
    attention_mask[1, ..., 6:] = 0
    labels = {
        "Model": {},
        "ForMaskedLM": {"labels": torch.where(torch.rand(shape) < 0.5, ids, -100)},
        "ForTokenClassification": {"labels": ids % 2},
        "ForSequenceClassification": {"labels": torch.tensor([0, 1])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])},
        "ForMultipleChoice": {"labels": torch.tensor([2, 0])},
    }[task]
    return {"input_ids": ids, "attention_mask": attention_mask, **labels}


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "pooling"),
    [
        ("Model", "mean"),
        ("ForMaskedLM", "mean"),
        ("ForTokenClassification", "mean"),
        ("ForQuestionAnswering", "mean"),
        ("ForSequenceClassification", "mean"),
        ("ForSequenceClassification", "cls"),
        ("ForMultipleChoice", "mean"),
        ("ForMultipleChoice", "cls"),
    ],
)
def test_encoder_is_stock_modernbert_with_full_attention(task: str, pooling: str):
    """Hidden states of all layers, outputs, loss and gradients, to 1e-5."""
    torch.manual_seed(0)
    config = ours.TinyTransformerEncoderConfig(**SHARED, classifier_pooling=pooling, initializer_range=0.2)
    encoder = getattr(ours, f"TinyTransformerEncoder{task}")(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # norms start at 1 and biases at 0, where a swapped pair would not show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    stock, inputs = stock_partner(encoder, task), inputs_for(task)

    expected, got = stock(**inputs, output_hidden_states=True), encoder(**inputs, output_hidden_states=True)

    for mine, reference in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert_close(mine, reference)
    assert got.keys() == expected.keys()
    for key in got.keys() - {"hidden_states"}:
        assert_close(got[key], expected[key])
    for outputs in (got, expected):
        (outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().mean()).backward()
    for parameter in encoder.parameters():
        parameter.data = parameter.grad  # so that the map of the weights maps the gradients
    mapped = stock_weights(encoder)
    for name, parameter in stock.named_parameters():
        assert_close(mapped[name], parameter.grad)
