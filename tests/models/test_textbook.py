"""Protects textbook properties of whole Transformers: what they know of word order, and cross-attention."""

import pytest
import torch
from families import LENGTH, POSITIONS, batch, every_family, random_ids, tiny_model
from transformers.modeling_outputs import BaseModelOutput


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_encoder_without_positions_ignores_the_order(positions: str):
    """It maps a permuted text to permuted states; with any kind of positions it does not."""
    model = tiny_model("Encoder", position_embedding_type=positions).double()
    ids, order = random_ids(2, LENGTH), torch.randperm(LENGTH)
    with torch.no_grad():
        expected, got = model(ids).last_hidden_state[:, order], model(ids[:, order]).last_hidden_state
    permuted = torch.allclose(got, expected, atol=1e-10)
    assert permuted == (positions == "none")


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_seq2seq_without_positions_ignores_the_order_of_its_source(positions: str):
    model = tiny_model("Seq2Seq", position_embedding_type=positions).double()
    inputs = batch("Seq2Seq", padded=False)
    order = torch.randperm(inputs["input_ids"].shape[1])
    shuffled = inputs | {"input_ids": inputs["input_ids"][:, order]}
    with torch.no_grad():
        same = torch.allclose(model(**shuffled).last_hidden_state, model(**inputs).last_hidden_state, atol=1e-10)
    assert same == (positions == "none")


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoder_without_positions_knows_the_last_token(positions: str):
    """The causal mask distinguishes the last token from earlier ones, but not the order of the earlier ones."""
    model = tiny_model("Decoder", position_embedding_type=positions, num_hidden_layers=1).double()
    ids = random_ids(2, LENGTH)
    order = torch.cat((torch.randperm(LENGTH - 1), torch.tensor([LENGTH - 1])))
    with torch.no_grad():
        last, shuffled = (model(given).last_hidden_state[:, -1] for given in (ids, ids[:, order]))
        moved = model(ids.roll(1, dims=1)).last_hidden_state[:, -1]
    assert torch.allclose(shuffled, last, atol=1e-10) == (positions == "none")
    assert not torch.allclose(moved, last, atol=1e-3)


def test_cross_attention_depends_on_the_encoders_output_only():
    """Equal encoder states give bit-identical weights, whatever `input_ids` are; other states give other weights."""
    model, inputs = tiny_model("Seq2Seq", attn_implementation="eager"), batch("Seq2Seq", padded=False)
    decoder = {"decoder_input_ids": inputs["decoder_input_ids"], "output_attentions": True}
    with torch.no_grad():
        encoded = model.encoder(input_ids=inputs["input_ids"]).last_hidden_state
        expected = model(input_ids=inputs["input_ids"], **decoder).cross_attentions

        def weights_for(states: torch.Tensor, **ids) -> tuple[torch.Tensor, ...]:
            return model(encoder_outputs=BaseModelOutput(last_hidden_state=states), **ids, **decoder).cross_attentions

        for same in (
            weights_for(encoded),
            weights_for(encoded, input_ids=random_ids(2, 11)),
            weights_for(encoded.clone()),
        ):
            assert all(torch.equal(got, weights) for got, weights in zip(same, expected, strict=True))
        for place in range(encoded.shape[1]):
            changed = encoded.clone()
            changed[:, place] += 0.1 * torch.randn(2, 32)
            others = weights_for(changed)
            for got, weights in zip(others, expected, strict=True):  # each layer, text, head and token
                assert ((got - weights).abs().amax(-1) > 0).all()
        other_text = model(input_ids=random_ids(2, 11), **decoder).cross_attentions
    assert not any(torch.allclose(got, weights, atol=1e-3) for got, weights in zip(other_text, expected, strict=True))


@every_family
def test_attention_is_the_weighted_mean_of_the_values(family: str):
    """Recomputed from the weights of the first layer; of cross-attention for Seq2Seq."""
    model, inputs = tiny_model(family, attn_implementation="eager"), batch(family)
    block = model.decoder.layers[0].cross_attention if family == "Seq2Seq" else model.layers[0].attention
    seen = {}

    def remember(module, args, kwargs, output) -> None:
        source = kwargs.get("key_value_states", args[0] if args else None)
        seen.update(source=source, mixed=output[0], weights=output[1])

    handle = block.register_forward_hook(remember, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
        handle.remove()
        values = block.v_proj(seen["source"]).unflatten(-1, (2, 16))
        by_hand = torch.einsum("bhts,bshd->bthd", seen["weights"], values).flatten(2)
        torch.testing.assert_close(seen["mixed"], block.o_proj(by_hand), atol=1e-5, rtol=1e-5)
