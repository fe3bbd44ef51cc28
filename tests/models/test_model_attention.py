"""Protects which tokens attend to which in whole models: padding, both directions, the future; backends agree."""

import pytest
import torch
from families import (
    BACKENDS,
    ENCODERS,
    GENERATORS,
    LENGTH,
    SOURCE_LENGTH,
    assert_close,
    batch,
    every_class,
    every_family,
    gradients,
    language_model,
    other_tokens,
    random_ids,
    real,
    tiny_model,
    training_batch,
)

HEADS, LAYERS = 2, 2


@every_family
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.usefixtures("_flex_uncompiled")
@pytest.mark.parametrize("padded", [False, True])
def test_backends_agree(family: str, backend: str, padded: bool):
    model, inputs = tiny_model(family), batch(family, padded=padded)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(**inputs)
        model.set_attn_implementation(backend)
        assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {
            backend
        }
        got = model(**inputs)
    assert_close(got.last_hidden_state[real(inputs)], expected.last_hidden_state[real(inputs)])
    if family == "Seq2Seq":
        read = inputs["attention_mask"].bool()
        assert_close(got.encoder_last_hidden_state[read], expected.encoder_last_hidden_state[read])


@every_family
@pytest.mark.parametrize("padded", [False, True])
def test_backends_agree_on_loss_and_gradients(family: str, padded: bool):
    """With eager and sdpa; flex attention has no backward pass on CPU."""
    model, inputs = language_model(family).train(), training_batch(family, padded=padded)
    results = []
    for backend in BACKENDS[:2]:
        model.set_attn_implementation(backend)
        results.append((model(**inputs).loss, gradients(model, **inputs)))
    assert_close(results[1], results[0])


@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_padding_tokens_have_no_effect(family: str, backend: str):
    """Other tokens in padding positions: the states of real tokens are bit-identical."""
    model, inputs = tiny_model(family, attn_implementation=backend), batch(family)
    changed = dict(inputs)
    for name in [name for name in inputs if "input_ids" in name]:
        mask = inputs[name.replace("input_ids", "attention_mask")].bool()
        changed[name] = torch.where(mask, inputs[name], other_tokens(inputs[name]))
        assert not torch.equal(changed[name], inputs[name])
    with torch.no_grad():
        before, after = model(**inputs).last_hidden_state, model(**changed).last_hidden_state
    assert torch.equal(before[real(inputs)], after[real(inputs)])


@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_a_padded_text_gives_the_states_of_the_text_alone(family: str, backend: str):
    model, inputs = tiny_model(family, attn_implementation=backend), batch(family)
    alone = {}
    for name in [name for name in inputs if "input_ids" in name]:
        count = inputs[name.replace("input_ids", "attention_mask")][1].sum()
        alone[name] = inputs[name][1:, :count]
    with torch.no_grad():
        expected = model(**alone).last_hidden_state
        assert_close(model(**inputs).last_hidden_state[1:, : expected.shape[1]], expected)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_encoders_attend_to_later_tokens(family: str, backend: str):
    """Without a mask; sdpa would be causal if the module had no `is_causal`."""
    model, ids = tiny_model(family, attn_implementation=backend), random_ids(2, LENGTH)
    changed = torch.cat((ids[:, :-1], other_tokens(ids[:, -1:])), dim=1)
    with torch.no_grad():
        difference = model(changed).last_hidden_state[:, 0] - model(ids).last_hidden_state[:, 0]
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.usefixtures("_flex_uncompiled")
def test_decoders_do_not_attend_to_later_tokens(family: str, backend: str, padded: bool):
    """Another fifth token: earlier states are bit-identical, its own and later ones differ."""
    model, inputs = tiny_model(family, attn_implementation=backend), batch(family, padded=padded)
    name = "decoder_input_ids" if family == "Seq2Seq" else "input_ids"
    changed = inputs | {name: inputs[name].clone()}
    changed[name][:, 4] = other_tokens(inputs[name][:, 4])
    with torch.no_grad():
        before, after = model(**inputs).last_hidden_state, model(**changed).last_hidden_state
    assert torch.equal(before[:, :4], after[:, :4])
    assert ((before - after)[:, 4:].abs().amax(-1)[real(inputs)[:, 4:]] > 1e-4).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_a_decoder_attends_to_all_encoder_tokens(backend: str):
    model, inputs = tiny_model("Seq2Seq", attn_implementation=backend), batch("Seq2Seq", padded=False)
    with torch.no_grad():
        before = model(**inputs)
        for place in (0, SOURCE_LENGTH - 1):
            ids = inputs["input_ids"].clone()
            ids[:, place] = other_tokens(ids[:, place])
            after = model(**(inputs | {"input_ids": ids}))
            states = (after.encoder_last_hidden_state - before.encoder_last_hidden_state).abs().amax(-1)
            assert (states > 1e-4).all()
            assert ((after.last_hidden_state - before.last_hidden_state).abs().amax(-1) > 1e-4).all()


@every_family
def test_attentions_and_hidden_states(family: str):
    """One per layer, and the embeddings; weights sum to one, and are zero on padding and later tokens of a decoder."""
    model, inputs = tiny_model(family, attn_implementation="eager"), batch(family)
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    squares = {"attentions": ("", LENGTH, LENGTH)}
    if family == "Seq2Seq":
        squares = {
            "encoder_attentions": ("", SOURCE_LENGTH, SOURCE_LENGTH),
            "decoder_attentions": ("decoder_", LENGTH, LENGTH),
            "cross_attentions": ("", LENGTH, SOURCE_LENGTH),
        }
        encoded = outputs.encoder_hidden_states
        assert [tuple(states.shape) for states in encoded] == [(2, SOURCE_LENGTH, 32)] * (LAYERS + 1)
        assert torch.equal(encoded[-1], outputs.encoder_last_hidden_state)
    states = outputs.decoder_hidden_states if family == "Seq2Seq" else outputs.hidden_states
    assert [tuple(state.shape) for state in states] == [(2, LENGTH, 32)] * (LAYERS + 1)
    assert torch.equal(states[-1], outputs.last_hidden_state)
    for name, (keys, rows, columns) in squares.items():
        layers = getattr(outputs, name)
        assert [tuple(weights.shape) for weights in layers] == [(2, HEADS, rows, columns)] * LAYERS
        padding = inputs[f"{keys}attention_mask"][:, None, None] == 0
        for weights in layers:
            assert_close(weights.sum(-1), torch.ones(2, HEADS, rows))
            assert weights.masked_select(padding).max() == 0
            if rows == columns == LENGTH and family in GENERATORS:
                assert weights.triu(1).max() == 0  # later tokens


@every_class
def test_task_models_return_attentions_on_request(family: str, task: str):
    model, inputs = tiny_model(family, task, attn_implementation="eager"), training_batch(family, task)
    plain = model(**inputs)
    requested = model(**inputs, output_attentions=True, output_hidden_states=True)
    sides = ["encoder_", "decoder_"] if family == "Seq2Seq" else [""]
    for side in sides:
        assert len(requested[f"{side}attentions"]) == LAYERS and len(requested[f"{side}hidden_states"]) == LAYERS + 1
        assert f"{side}attentions" not in plain and f"{side}hidden_states" not in plain
    assert ("cross_attentions" in requested) == (family == "Seq2Seq")
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], plain[0])


@every_family
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_a_4d_mask_is_used_unchanged(family: str, backend: str):
    model, inputs = tiny_model(family, attn_implementation=backend), batch(family, padded=False)
    name = "decoder_attention_mask" if family == "Seq2Seq" else "attention_mask"
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    visible = visible.tril() if family in GENERATORS else visible
    visible[3:, :2] = False  # later tokens do not attend to the first two
    mask = visible.expand(2, 1, -1, -1)
    if backend == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float).min)
    with torch.no_grad():
        plain, masked = model(**inputs).last_hidden_state, model(**(inputs | {name: mask})).last_hidden_state
    if family in GENERATORS:
        assert_close(masked[:, :3], plain[:, :3])
    assert ((masked - plain)[:, 3:].abs().amax(-1) > 1e-3).all()
