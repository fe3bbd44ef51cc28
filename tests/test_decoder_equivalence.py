"""Protects what the Decoder is compared with: stock ModernBertDecoder with full attention, and our own Encoder."""

import pytest
import torch
import transformers
from families import LANGUAGE_MODELS, model_class, tiny_model
from stock_modernbert import SHAPE, assert_close, assert_same_function, our_model
from torch import nn
from transformers import PreTrainedModel

from hf_tiny_transformer.convert.modernbert import to_stock


def inputs_for(task: str) -> dict[str, torch.Tensor]:
    """A batch, its second text padded on the right, and the labels that the task's loss asks for.

    Stock finds a text's last token by the pad id, so the classifier's padding must have it. Else it does not occur,
    since stock never trains its embedding (`padding_idx`) and we do where a loss reads it.
    """
    ids, attention_mask = torch.randint(1, SHAPE["vocab_size"], (2, 9)), torch.ones(2, 9, dtype=torch.long)
    attention_mask[1, 6:] = 0
    if task == "ForSequenceClassification":
        ids = ids * attention_mask
    labels = {
        "Model": {},
        "ForCausalLM": {"labels": torch.where(torch.rand(2, 9) < 0.5, ids, -100)},
        "ForSequenceClassification": {"labels": torch.tensor([0, 1])},
    }[task]
    return {"input_ids": ids, "attention_mask": attention_mask, **labels}


@pytest.mark.parametrize("theta", [10_000.0, 160_000.0])
@pytest.mark.parametrize("task", ["Model", "ForCausalLM", "ForSequenceClassification"])
def test_decoder_is_stock_modernbert_decoder_with_full_attention(task: str, theta: float):
    model = our_model("Decoder", task, rope_parameters={"rope_type": "default", "rope_theta": theta})
    assert_same_function(model, inputs_for(task))


def test_both_decoders_write_the_same_text():
    """Left-padded prompts, caches, and the library's loop: twelve words that do not repeat one."""
    model = our_model("Decoder", "ForCausalLM")
    stock = to_stock(model)
    inputs = inputs_for("ForCausalLM")
    prompt = {name: inputs[name].roll(3, dims=1) for name in ("input_ids", "attention_mask")}
    prompt["attention_mask"][0] = 1
    settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    mine, reference = model.generate(**prompt, **settings), stock.generate(**prompt, **settings)
    assert torch.equal(mine.sequences, reference.sequences)
    assert_close(torch.stack(mine.logits), torch.stack(reference.logits))
    assert len(set(mine.sequences[:, 9:].flatten().tolist())) > 2


def test_packed_rows_are_stock_packed_rows():
    model = our_model("Decoder", "ForCausalLM")
    stock = to_stock(model)
    row = {"input_ids": inputs_for("ForCausalLM")["input_ids"][:1], "use_cache": False}
    row["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    assert_close(model(**row).logits, stock(**row).logits)


def test_a_swapped_pair_of_weights_would_show():
    """The comparison above is no formality: gate and up exchanged, it fails."""
    model = our_model("Decoder", "Model")
    stock, inputs = to_stock(model), inputs_for("Model")
    mlp: nn.Module = model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    with torch.no_grad():
        difference = model(**inputs).last_hidden_state - stock(**inputs).last_hidden_state
    assert difference.abs().max() > 1e-2


def class_of(family: str, task: str) -> type[PreTrainedModel]:
    return model_class(family, LANGUAGE_MODELS[family] if task == "language model" else task)


@pytest.mark.parametrize(("source", "target"), [("Encoder", "Decoder"), ("Decoder", "Encoder")])
@pytest.mark.parametrize("task", ["Model", "language model", "ForSequenceClassification"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_encoder_and_decoder_open_each_others_files(source: str, target: str, task: str, positions: str, tmp_path):
    """Equal names, equal shapes, nothing missing or left over: either is trained on from the other."""
    source_class, target_class = class_of(source, task), class_of(target, task)
    kind = {"position_embedding_type": positions}
    first = source_class(tiny_model(source, **kind).config)
    shapes = {name: parameter.shape for name, parameter in first.named_parameters()}
    second = target_class(tiny_model(target, **kind).config)
    assert {name: parameter.shape for name, parameter in second.named_parameters()} == shapes

    first.save_pretrained(tmp_path / "first")
    opened, loading = target_class.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(loading.values())
    assert all(torch.equal(parameter, first.get_parameter(name)) for name, parameter in opened.named_parameters())
    opened.save_pretrained(tmp_path / "second")  # and is from now on one of its own family
    auto_class = transformers.AutoModelForCausalLM if target == "Decoder" else transformers.AutoModelForMaskedLM
    if task == "language model":
        assert type(auto_class.from_pretrained(tmp_path / "second")) is target_class
