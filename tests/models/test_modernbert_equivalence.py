"""Protects equivalence: with equal weights, Encoder and Decoder compute what stock ModernBERT and its decoder do."""

import pytest
import torch
import transformers
from families import LANGUAGE_MODELS, assert_close, model_class, tiny_model
from transformers import PreTrainedModel

import hf_tiny_transformer as ours
from hf_tiny_transformer.convert.modernbert import stock_weights
from hf_tiny_transformer.convert.stock import to_stock

VOCAB = 53
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "norm_eps": 1e-5,
    "pad_token_id": 0,
}


def our_model(family: str, task: str, **overrides) -> PreTrainedModel:
    """Build a model with noise on all weights: swapped norms (1) or biases (0) would not be noticed otherwise."""
    config = getattr(ours, f"TinyTransformer{family}Config")(**SHAPE, initializer_range=0.2, **overrides)
    model = model_class(family, task)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs_for(family: str, task: str) -> dict[str, torch.Tensor]:
    """Build a batch, padded on the right, with labels.

    Stock finds the last token of a text by the pad id, so that a Decoder's classifier needs it in the padding.
    Elsewhere it does not occur, because stock never trains its embedding (`padding_idx`).
    """
    shape = (2, 3, 9) if task == "ForMultipleChoice" else (2, 9)
    ids, attention_mask = torch.randint(1, VOCAB, shape), torch.ones(shape, dtype=torch.long)
    attention_mask[1, ..., 6:] = 0
    if (family, task) == ("Decoder", "ForSequenceClassification"):
        ids = ids * attention_mask
    token_labels = torch.where(torch.rand(shape) < 0.5, ids, -100)
    labels = {
        "Model": {},
        "ForMaskedLM": {"labels": token_labels},
        "ForCausalLM": {"labels": token_labels},
        "ForTokenClassification": {"labels": ids % 2},
        "ForSequenceClassification": {"labels": torch.tensor([0, 1])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])},
        "ForMultipleChoice": {"labels": torch.tensor([2, 0])},
    }[task]
    return {"input_ids": ids, "attention_mask": attention_mask, **labels}


def assert_same_function(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Compare the hidden states of all layers, outputs, loss and gradients."""
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
        else:  # stock gives both layers of this head a bias or neither; ours has none, and stock's is zero
            assert name == "head.dense.bias" and not parameter.any()


@pytest.mark.parametrize(
    ("family", "task", "settings"),
    [
        ("Encoder", "Model", {}),
        ("Encoder", "ForMaskedLM", {}),
        ("Encoder", "ForTokenClassification", {}),
        ("Encoder", "ForQuestionAnswering", {}),
        ("Encoder", "ForSequenceClassification", {"classifier_pooling": "mean"}),
        ("Encoder", "ForSequenceClassification", {"classifier_pooling": "cls"}),
        ("Encoder", "ForMultipleChoice", {"classifier_pooling": "mean"}),
        ("Encoder", "ForMultipleChoice", {"classifier_pooling": "cls"}),
        ("Decoder", "Model", {}),
        ("Decoder", "ForCausalLM", {}),
        ("Decoder", "ForSequenceClassification", {}),
        ("Decoder", "ForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 160_000.0}}),
    ],
)
def test_same_function_as_stock(family: str, task: str, settings: dict):
    assert_same_function(our_model(family, task, **settings), inputs_for(family, task))


def test_decoders_generate_the_same_text():
    """From left-padded prompts with a cache."""
    model = our_model("Decoder", "ForCausalLM")
    stock, inputs = to_stock(model), inputs_for("Decoder", "ForCausalLM")
    prompt = {name: inputs[name].roll(3, dims=1) for name in ("input_ids", "attention_mask")}
    prompt["attention_mask"][0] = 1
    settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    mine, reference = model.generate(**prompt, **settings), stock.generate(**prompt, **settings)
    assert torch.equal(mine.sequences, reference.sequences)
    assert_close(torch.stack(mine.logits), torch.stack(reference.logits))
    assert len(set(mine.sequences[:, 9:].flatten().tolist())) > 2  # not a repetition of one token


def test_packed_rows_of_decoders():
    model = our_model("Decoder", "ForCausalLM")
    row = {"input_ids": torch.randint(1, VOCAB, (1, 9)), "use_cache": False}
    row["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    assert_close(model(**row).logits, to_stock(model)(**row).logits)


def test_the_comparison_detects_swapped_weights():
    model = our_model("Decoder", "Model")
    stock, inputs = to_stock(model), inputs_for("Decoder", "Model")
    mlp = model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    with torch.no_grad():
        difference = model(**inputs).last_hidden_state - stock(**inputs).last_hidden_state
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize(("source", "target"), [("Encoder", "Decoder"), ("Decoder", "Encoder")])
@pytest.mark.parametrize("task", ["Model", "language model", "ForSequenceClassification"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_encoder_and_decoder_open_each_others_files(source: str, target: str, task: str, positions: str, tmp_path):
    """No weight is missing or unexpected; saved again, the checkpoint is one of the other family."""
    source_class, target_class = (
        model_class(family, LANGUAGE_MODELS[family] if task == "language model" else task)
        for family in (source, target)
    )
    first = source_class(tiny_model(source, position_embedding_type=positions).config)
    first.save_pretrained(tmp_path / "first")
    opened, loading = target_class.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(loading.values())
    assert all(torch.equal(parameter, first.get_parameter(name)) for name, parameter in opened.named_parameters())
    opened.save_pretrained(tmp_path / "second")
    auto_class = transformers.AutoModelForCausalLM if target == "Decoder" else transformers.AutoModelForMaskedLM
    if task == "language model":
        assert type(auto_class.from_pretrained(tmp_path / "second")) is target_class
