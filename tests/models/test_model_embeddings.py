"""Protects embedding matrices: tied ones share their storage, and all of them are resized."""

import pytest
import torch
from families import (
    VOCAB,
    assert_close,
    batch,
    every_family,
    every_lm_head,
    gradients,
    language_model,
    tiny_model,
    training_batch,
)
from torch import nn
from transformers import PreTrainedModel


def embeddings(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return every matrix with a row per token by its name, tied or not."""
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }
    assert matrices
    return matrices


def expected_names(family: str, task: str) -> set[str]:
    """Name the embeddings of each side, and the output matrix of a language model."""
    prefix = "" if task == "Model" else "model."
    sides = ["encoder.", "decoder."] if family == "Seq2Seq" else [""]
    names = {f"{prefix}{side}embed_tokens.weight" for side in sides}
    return names if task == "Model" else names | {"lm_head.weight"}


@every_lm_head
def test_output_matrix_stays_tied(family: str, task: str, tmp_path):
    """When built, loaded, resized, and loaded after a resize."""
    model = tiny_model(family, task)
    model.save_pretrained(tmp_path / "first")
    resized = type(model).from_pretrained(tmp_path / "first")
    resized.resize_token_embeddings(VOCAB + 7)
    resized.save_pretrained(tmp_path / "second")
    reloaded = type(model).from_pretrained(tmp_path / "second")
    for tied in (model, type(model).from_pretrained(tmp_path / "first"), resized, reloaded):
        matrices = embeddings(tied)
        assert matrices.keys() == expected_names(family, task)
        assert len({matrix.data_ptr() for matrix in matrices.values()}) == 1
    assert reloaded.config.vocab_size == VOCAB + 7
    inputs = batch(family)
    with torch.no_grad():
        logits, expected = reloaded(**inputs)[0], model(**inputs)[0]
    assert logits.shape[-1] == VOCAB + 7 == reloaded.lm_head.bias.shape[0]
    assert_close(logits[..., :VOCAB], expected)


def test_both_sides_of_a_seq2seq_trunk_share_embeddings(tmp_path):
    model = tiny_model("Seq2Seq")
    model.resize_token_embeddings(VOCAB + 7)
    model.save_pretrained(tmp_path)
    for tied in (model, type(model).from_pretrained(tmp_path)):
        matrices = embeddings(tied)
        assert matrices.keys() == expected_names("Seq2Seq", "Model")
        assert len({matrix.data_ptr() for matrix in matrices.values()}) == 1


@every_lm_head
def test_untied_matrices_are_resized_each(family: str, task: str, tmp_path):
    """Each keeps its rows, also in a file, and the model computes the same for old tokens."""
    model = tiny_model(family, task, tie_word_embeddings=False)
    originals = {name: matrix.detach().clone() for name, matrix in embeddings(model).items()}
    assert originals.keys() == expected_names(family, task)
    inputs = batch(family)
    with torch.no_grad():
        expected = model(**inputs)[0]
    model.resize_token_embeddings(VOCAB + 7)
    model.save_pretrained(tmp_path)
    for untied in (model, type(model).from_pretrained(tmp_path)):
        matrices = embeddings(untied)
        assert len({matrix.data_ptr() for matrix in matrices.values()}) == len(matrices)
        for name, matrix in matrices.items():
            assert matrix.shape[0] == VOCAB + 7, name
            assert torch.equal(matrix[:VOCAB], originals[name])
        for module in untied.modules():
            assert not isinstance(module, nn.Embedding) or module.num_embeddings == module.weight.shape[0]
        new = {name: torch.full_like(ids, VOCAB + 6) if "input_ids" in name else ids for name, ids in inputs.items()}
        with torch.no_grad():
            assert_close(untied(**inputs)[0][..., :VOCAB], expected)
            assert untied(**new)[0].isfinite().all()


def test_resizing_to_a_multiple():
    model = language_model("Seq2Seq", tie_word_embeddings=False)
    model.resize_token_embeddings(pad_to_multiple_of=16)
    assert {matrix.shape[0] for matrix in embeddings(model).values()} == {64}
    assert model.config.vocab_size == 64


@every_family
def test_the_gradient_of_a_tied_matrix_is_the_sum_over_its_uses(family: str):
    """Compared with the separate matrices of an untied model with equal weights."""
    tied, untied = language_model(family), language_model(family, tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    inputs = training_batch(family)
    untied_gradients = gradients(untied, **inputs)
    copies = [untied_gradients[name] for name in embeddings(untied)]
    assert len(copies) == (3 if family == "Seq2Seq" else 2)
    assert all(copy.abs().max() > 1e-3 for copy in copies)
    assert_close(gradients(tied, **inputs)[next(iter(embeddings(tied)))], sum(copies))


@every_lm_head
def test_set_input_embeddings(family: str, task: str):
    """After `tie_weights`, every use of the matrix has changed."""
    model = tiny_model(family, task)
    fresh = nn.Embedding(VOCAB, 32)
    inputs = batch(family, task)
    with torch.no_grad():
        before = model(**inputs)[0]
        model.set_input_embeddings(fresh)
        model.tie_weights()
        assert model.get_input_embeddings() is fresh
        assert {matrix.data_ptr() for matrix in embeddings(model).values()} == {fresh.weight.data_ptr()}
        assert not torch.allclose(model(**inputs)[0], before, atol=1e-3)


@every_family
def test_inputs_embeds(family: str):
    model, inputs = tiny_model(family), batch(family)
    embed = model.get_input_embeddings()
    embedded = {
        name.replace("input_ids", "inputs_embeds"): embed(value) if "input_ids" in name else value
        for name, value in inputs.items()
    }
    assert torch.equal(model(**embedded).last_hidden_state, model(**inputs).last_hidden_state)
    for name in [name for name in inputs if "input_ids" in name]:
        both = inputs | {name.replace("input_ids", "inputs_embeds"): embed(inputs[name])}
        neither = {other: value for other, value in inputs.items() if other != name}
        for wrong in (both, neither):
            with pytest.raises(ValueError, match="exactly one of"):
                model(**wrong)
