"""Protects compilation and export: one graph without a break, the same numbers, dynamic shapes."""

import pytest
import torch
from families import (
    CLASSIFIERS,
    LENGTH,
    VOCAB,
    assert_close,
    batch,
    every_family,
    every_lm_head,
    every_third,
    gradients,
    language_model,
    output_ids,
    random_ids,
    real,
    tiny_model,
    training_batch,
    without_cache,
)

from hf_tiny_transformer import token_loss


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    """Reset the compiler: recompilations count across tests."""
    torch.compiler.reset()


def graph_inputs(family: str, kind: str) -> dict[str, torch.Tensor]:
    """Build two rows, padded or packed, with labels."""
    inputs = batch(family)
    if kind == "packed":
        for name in [name for name in inputs if "input_ids" in name]:
            length = inputs[name].shape[1]
            positions = torch.cat((torch.arange(4), torch.arange(length - 4))).expand(2, -1)
            inputs[name.replace("input_ids", "position_ids")] = positions
            del inputs[name.replace("input_ids", "attention_mask")]
    return inputs | {"labels": every_third(output_ids(inputs))}


@every_family
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_forward_and_loss_are_one_graph(family: str, kind: str):
    """With the backend aot_eager, which needs no C++ compiler.

    A graph that was compiled for packed rows also serves rows of one document.
    """
    model, inputs = language_model(family, **without_cache(family)), graph_inputs(family, kind)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**inputs).logits, model(**inputs).logits)
    expected = gradients(model, **inputs)
    model.zero_grad()
    compiled(**inputs).loss.backward()
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient)
    for name in [name for name in inputs if "position_ids" in name]:
        inputs[name] = torch.arange(inputs[name].shape[1]).expand(2, -1)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(**inputs).logits, model(**inputs).logits)


@every_lm_head
def test_compiled_loss_without_logits_has_gradients(family: str, task: str, monkeypatch: pytest.MonkeyPatch):
    """Compiled by torch 2.11, in-place additions in its autograd.Function gave gradients of zero.

    The targets are cut into several chunks, the last one smaller.
    """
    monkeypatch.setattr(token_loss, "CPU_CHUNK", 4 * VOCAB)
    model, inputs = tiny_model(family, task, **without_cache(family)), training_batch(family, task)
    compiled = torch.compile(model, backend="aot_eager")
    expected = gradients(model, **inputs, skip_logits=True)
    model.zero_grad()
    compiled(**inputs, skip_logits=True).loss.backward()
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient)


@every_family
def test_exported_language_model(family: str):
    """The exported graph runs on other shapes than it was traced with."""
    model, example = language_model(family, **without_cache(family)), batch(family)
    rows = torch.export.Dim("rows", min=2, max=64)
    read, written = torch.export.Dim("read", min=2, max=32), torch.export.Dim("written", min=2, max=32)
    shapes = {
        name: {0: rows, 1: written if name.startswith("decoder") else read} if isinstance(value, torch.Tensor) else None
        for name, value in example.items()
    }
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    inputs = dict(example)
    for name, length in (("input_ids", 17), ("decoder_input_ids", 6)):
        if name in example:
            inputs[name] = random_ids(5, length)
            inputs[name.replace("input_ids", "attention_mask")] = torch.ones(5, length, dtype=torch.long)
            inputs[name.replace("input_ids", "attention_mask")][2, 4:] = 0
    exported, expected = program.module()(**inputs).logits, model(**inputs).logits
    assert exported.shape == (5, 6 if family == "Seq2Seq" else 17, VOCAB)
    assert_close(exported[real(inputs)], expected[real(inputs)])


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_exported_classifier(family: str):
    model = tiny_model(family, "ForSequenceClassification", **without_cache(family))
    sizes = {0: torch.export.Dim("rows", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=32)}
    program = torch.export.export(
        model, (), batch(family), dynamic_shapes={"input_ids": sizes, "attention_mask": sizes}
    )
    inputs = {"input_ids": random_ids(5, 17), "attention_mask": torch.ones(5, 17, dtype=torch.long)}
    inputs["attention_mask"][2, 4:] = 0
    assert_close(program.module()(**inputs).logits, model(**inputs).logits)


def test_exported_decoder_on_packed_rows():
    model = language_model("Decoder", use_cache=False)
    example = {"input_ids": random_ids(2, LENGTH), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)}
    program = torch.export.export(model, (), example)
    other = example | {"position_ids": torch.tensor([[0, 1, 0, 1, 2, 3, 4, 5, 6], list(range(LENGTH))])}
    for inputs in (example, other):
        assert_close(program.module()(**inputs).logits, model(**inputs).logits)
