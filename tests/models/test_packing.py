"""Protects packed rows: documents give the same states as alone, and do not attend to each other."""

import pytest
import torch
from families import (
    BACKENDS,
    GENERATORS,
    POSITIONS,
    assert_close,
    batch,
    every_family,
    gradients,
    language_model,
    other_tokens,
    output_ids,
    pack,
    pad,
    real,
    tiny_model,
    two_documents,
)
from transformers.cache_utils import DynamicCache

TRUNK_FAMILIES = ["Encoder", "Decoder", "Seq2Seq"]


@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_packed_documents_give_the_states_of_padded_and_single_ones(family: str, backend: str):
    model, documents = tiny_model(family, attn_implementation=backend), two_documents(family)
    with torch.no_grad():
        packed = model(**pack(documents)).last_hidden_state[0]
        padded = model(**pad(documents)).last_hidden_state[real(pad(documents))]
        alone = torch.cat([model(**document).last_hidden_state[0] for document in documents])
    assert_close(packed, padded)
    assert_close(packed, alone)


@pytest.mark.parametrize("family", TRUNK_FAMILIES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_packing_with_every_kind_of_positions(family: str, positions: str):
    model, documents = tiny_model(family, position_embedding_type=positions), two_documents(family)
    with torch.no_grad():
        packed = model(**pack(documents)).last_hidden_state[0]
        alone = torch.cat([model(**document).last_hidden_state[0] for document in documents])
    assert_close(packed, alone)


@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_documents_do_not_affect_each_other(family: str, backend: str):
    """Other tokens in one document, on either side of a Seq2Seq: the states of the other are bit-identical."""
    model, documents = tiny_model(family, attn_implementation=backend), two_documents(family)
    border = output_ids(documents[0]).shape[1]
    places = [slice(0, border), slice(border, None)]
    with torch.no_grad():
        before = model(**pack(documents)).last_hidden_state[0]
        for changed in (0, 1):
            for name in documents[0]:
                perturbed = [dict(document) for document in documents]
                perturbed[changed][name] = other_tokens(documents[changed][name])
                after = model(**pack(perturbed)).last_hidden_state[0]
                assert torch.equal(after[places[1 - changed]], before[places[1 - changed]])
                assert ((after - before)[places[changed]].abs().amax(-1) > 1e-4).all()


@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_rows_with_different_boundaries(family: str, backend: str):
    model = tiny_model(family, attn_implementation=backend)
    first, second = two_documents(family), two_documents(family)[::-1]  # lengths 5 + 4, and 4 + 5
    rows = [pack(first), pack(second)]
    with torch.no_grad():
        together = model(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]}).last_hidden_state
        for states, row in zip(together, rows, strict=True):
            assert_close(states, model(**row).last_hidden_state[0])


@every_family
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_packed_and_padded_rows_have_the_same_gradients(family: str, backend: str):
    """The first token of a causal document is not a target, because no token precedes it."""
    model = language_model(family, attn_implementation=backend).train()
    documents = two_documents(family)
    first = 1 if family == "Decoder" else 0
    labels = [output_ids(document).clone() for document in documents]
    for label in labels:
        label[:, :first] = -100
    packed = pack(documents) | {"labels": torch.cat(labels, dim=1)}
    padded = pad(documents)
    padded["labels"] = torch.nn.utils.rnn.pad_sequence(
        [label[0] for label in labels], batch_first=True, padding_value=-100
    )
    assert_close(model(**packed).loss, model(**padded).loss)
    assert_close(gradients(model, **packed), gradients(model, **padded))


@every_family
def test_an_attention_mask_disables_packing(family: str):
    model, documents = tiny_model(family, attn_implementation="eager"), two_documents(family)
    inputs = pack(documents)
    masks = {
        name.replace("input_ids", "attention_mask"): torch.ones_like(ids)
        for name, ids in inputs.items()
        if "input_ids" in name
    }
    kind = "cross_attentions" if family == "Seq2Seq" else "attentions"
    with torch.no_grad():
        apart = model(**inputs, output_attentions=True)[kind][0][0, 0]
        joined = model(**inputs, **masks, output_attentions=True)[kind][0][0, 0]
    border = documents[0]["input_ids"].shape[1]
    assert apart[-1, :border].max() == 0  # the last token and the first document
    assert joined[-1, :border].max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_the_nth_document_attends_to_the_nth_encoder_document(backend: str):
    """Also if the rows, or the two sides, hold different numbers of documents."""
    model = tiny_model("Seq2Seq", attn_implementation=backend)
    row = pack(two_documents("Seq2Seq"))
    single = {name: ids for name, ids in row.items() if "input_ids" in name}
    single |= {name.replace("input", "position"): torch.arange(ids.shape[1])[None] for name, ids in single.items()}
    with torch.no_grad():
        together = model(**{name: torch.cat((row[name], single[name])) for name in row}).last_hidden_state
        assert_close(together[:1], model(**row).last_hidden_state)
        assert_close(together[1:], model(**single).last_hidden_state)
        # one document in the decoder, two in the encoder: it attends to the first
        lone = single | {"position_ids": row["position_ids"]}
        before = model(**lone).last_hidden_state
        changed = lone["input_ids"].clone()
        changed[:, 4:] = other_tokens(changed[:, 4:])
        assert torch.equal(model(**(lone | {"input_ids": changed})).last_hidden_state, before)


@pytest.mark.parametrize("family", GENERATORS)
def test_a_cache_disables_packing(family: str):
    model, inputs = tiny_model(family), batch(family, padded=False)
    side = "decoder_" if family == "Seq2Seq" else ""
    ids = inputs.pop(f"{side}input_ids")
    del inputs[f"{side}attention_mask"]
    with torch.no_grad():
        past = model(**inputs, **{f"{side}input_ids": ids[:, :5]}).past_key_values
        restarted = {f"{side}input_ids": ids[:, 5:], f"{side}position_ids": torch.tensor([[5, 6, 0, 1]])}
        states = model(**inputs, **restarted, past_key_values=past).last_hidden_state
        other_past = model(**inputs, **{f"{side}input_ids": other_tokens(ids[:, :5])}).past_key_values
        others = model(**inputs, **restarted, past_key_values=other_past).last_hidden_state
    assert ((states - others).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_packed_row_fills_the_cache(use_cache: bool):
    model, documents = tiny_model("Decoder"), two_documents("Decoder")
    with torch.no_grad():
        outputs = model(**pack(documents), use_cache=use_cache)
        trained = model.train()(**pack(documents)).last_hidden_state
    assert (outputs.past_key_values is not None) == use_cache
    if use_cache:
        assert isinstance(outputs.past_key_values, DynamicCache)
        assert outputs.past_key_values.get_seq_length() == output_ids(pack(documents)).shape[1]
    assert_close(outputs.last_hidden_state, trained)  # no cache while training
