"""Protects what textbooks say of whole Transformers: order, the hidden future, a decoder that asks its encoder."""

import pytest
import torch
from families import LENGTH, POSITIONS, batch, every_family, random_ids, tiny_model
from transformers.modeling_outputs import BaseModelOutput

I_AM_A_STUDENT = [[11, 12, 13, 14]]


@pytest.mark.parametrize("layers", [1, 4])
def test_after_i_am_a_the_fourth_word_has_no_weight_in_a_decoder(layers: int):
    """Exactly zero, in every layer and head, whatever the fourth word is; the words that are there share it all."""
    model = tiny_model("Decoder", attn_implementation="eager", num_hidden_layers=layers)
    attentions = model(torch.tensor(I_AM_A_STUDENT), output_attentions=True).attentions
    check_future(attentions, layers)


@pytest.mark.parametrize("layers", [1, 4])
def test_after_i_am_a_the_fourth_word_has_no_weight_in_a_seq2seq(layers: int):
    model = tiny_model("Seq2Seq", attn_implementation="eager", num_decoder_layers=layers)
    outputs = model(input_ids=random_ids(1, 6), decoder_input_ids=torch.tensor(I_AM_A_STUDENT), output_attentions=True)
    check_future(outputs.decoder_attentions, layers)
    assert all((weights > 0).all() for weights in outputs.encoder_attentions)  # what is read is read at once


def check_future(attentions: tuple[torch.Tensor, ...], layers: int) -> None:
    assert len(attentions) == layers
    for weights in attentions:
        assert (weights[:, :, :3, 3] == 0).all()
        assert (weights[:, :, 0, 0] == 1).all()  # the first word has but itself
        assert (weights.tril() == weights).all()
        assert (weights[:, :, 3] > 0).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_permutation_shows_which_positions_are_known(positions: str):
    """Without positions the encoder maps a shuffled text to the shuffled states; with any kind it does not."""
    model = tiny_model("Encoder", position_embedding_type=positions).double()
    ids, order = random_ids(2, LENGTH), torch.randperm(LENGTH)
    with torch.no_grad():
        expected, got = model(ids).last_hidden_state[:, order], model(ids[:, order]).last_hidden_state
    blind = torch.allclose(got, expected, atol=1e-10)  # not bit for bit: sums run in another order
    assert blind == (positions == "none")


def test_bert_knows_the_order_of_words():
    model, ids, order = tiny_model("Bert").double(), random_ids(2, LENGTH), torch.randperm(LENGTH)
    with torch.no_grad():
        expected, got = model(ids).last_hidden_state[:, order], model(ids[:, order]).last_hidden_state
    assert not torch.allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_seq2seq_without_positions_reads_a_bag_of_words(positions: str):
    """What it writes is then the same for any order of what it read."""
    model = tiny_model("Seq2Seq", position_embedding_type=positions).double()
    inputs = batch("Seq2Seq", padded=False)
    order = torch.randperm(inputs["input_ids"].shape[1])
    shuffled = inputs | {"input_ids": inputs["input_ids"][:, order]}
    with torch.no_grad():
        same = torch.allclose(model(**shuffled).last_hidden_state, model(**inputs).last_hidden_state, atol=1e-10)
    assert same == (positions == "none")


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoder_without_positions_still_knows_what_came_before(positions: str):
    """The causal mask alone tells the last word from the others, but not the order of the words before it."""
    model = tiny_model("Decoder", position_embedding_type=positions, num_hidden_layers=1).double()
    ids = random_ids(2, LENGTH)
    order = torch.cat((torch.randperm(LENGTH - 1), torch.tensor([LENGTH - 1])))
    with torch.no_grad():
        last, shuffled = (model(given).last_hidden_state[:, -1] for given in (ids, ids[:, order]))
        moved = model(ids.roll(1, dims=1)).last_hidden_state[:, -1]
    assert torch.allclose(shuffled, last, atol=1e-10) == (positions == "none")
    assert not torch.allclose(moved, last, atol=1e-3)


def test_cross_attention_changes_when_and_only_when_the_encoders_output_does():
    """Equal answers of the encoder, equal weights to the last bit, whatever ids stand beside them; others, others."""
    model, inputs = tiny_model("Seq2Seq", attn_implementation="eager"), batch("Seq2Seq", padded=False)
    written = {"decoder_input_ids": inputs["decoder_input_ids"], "output_attentions": True}
    with torch.no_grad():
        answer = model.encoder(input_ids=inputs["input_ids"]).last_hidden_state
        expected = model(input_ids=inputs["input_ids"], **written).cross_attentions

        def weights_for(states: torch.Tensor, **ids) -> tuple[torch.Tensor, ...]:
            return model(encoder_outputs=BaseModelOutput(last_hidden_state=states), **ids, **written).cross_attentions

        for same in (
            weights_for(answer),
            weights_for(answer, input_ids=random_ids(2, 11)),
            weights_for(answer.clone()),
        ):
            assert all(torch.equal(got, weights) for got, weights in zip(same, expected, strict=True))
        for place in range(answer.shape[1]):
            changed = answer.clone()
            changed[:, place] += 0.1 * torch.randn(2, 32)
            others = weights_for(changed)
            for got, weights in zip(others, expected, strict=True):  # each layer, text, head and written word
                assert ((got - weights).abs().amax(-1) > 0).all()
        other_text = model(input_ids=random_ids(2, 11), **written).cross_attentions
    assert not any(torch.allclose(got, weights, atol=1e-3) for got, weights in zip(other_text, expected, strict=True))


@every_family
def test_attention_is_the_weighted_mean_of_the_values(family: str):
    """Recomputed by hand from the weights that come out of a model's first layer, cross-attention for a Seq2Seq."""
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
