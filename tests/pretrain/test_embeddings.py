"""Protects the embeddings that training starts from: tokens that keep the same company, and neighbouring positions."""

import numpy as np
import pytest
import torch
from families import tiny_config
from transformers import AutoModel

from hf_tiny_transformer.layers import sinusoidal_positions
from pretrain.data.embeddings import CONTEXTS, cooccurrence_embeddings, start_positions
from pretrain.data.packed import PackedTokens
from pretrain.data.tokenizer import VocabularyFacts

PAD, UNK, CLS, SEP, MASK = range(5)
# 5 and 6 keep the same company (10..14), 7 and 8 another (15..19); 9 never occurs
COMPANY = {5: range(10, 15), 6: range(10, 15), 7: range(15, 20), 8: range(15, 20)}
VOCABULARY = 20


@pytest.fixture(scope="module")
def facts():
    special = np.arange(VOCABULARY) < 5
    ordinary = np.flatnonzero(~special)
    return VocabularyFacts(CLS, SEP, MASK, PAD, special, np.ones(VOCABULARY, bool), ordinary, ordinary[:0])


@pytest.fixture(scope="module")
def vectors(facts):
    generator = np.random.default_rng(0)
    tokens = []
    for _ in range(2000):
        word = int(generator.integers(5, 9))
        tokens += [CLS, *generator.choice(list(COMPANY[word]), 3), word, *generator.choice(list(COMPANY[word]), 3), SEP]
    return cooccurrence_embeddings(PackedTokens(np.array(tokens, dtype=np.uint16), CLS), facts, 8)


def test_same_company_same_place(vectors):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    assert unit[5] @ unit[6] > 0.95
    assert unit[7] @ unit[8] > 0.95
    assert abs(unit[5] @ unit[7]) < 0.2


def test_rows_have_one_norm_and_unknown_ones_are_zero(vectors):
    norms = np.linalg.norm(vectors, axis=1)
    assert norms[5:9] == pytest.approx(0.1 * np.sqrt(8), rel=1e-5)
    assert (norms[:5] == 0).all()
    assert norms[9] == 0
    assert vectors.dtype == np.float32


def test_documents_are_no_company_to_each_other(facts):
    """The same two tokens, in one document or in two: only the first is company."""
    together = np.array([CLS, 5, 10, SEP, CLS, 6, 11, SEP] * 50, dtype=np.uint16)
    apart = np.array([CLS, 5, SEP, CLS, 10, SEP] * 50, dtype=np.uint16)
    assert np.abs(cooccurrence_embeddings(PackedTokens(together, CLS), facts, 2)).sum() > 0
    with np.errstate(all="raise"):
        assert np.abs(cooccurrence_embeddings(PackedTokens(apart, CLS), facts, 2)).sum() == 0


def test_counted_twice_is_the_same(facts, vectors):
    assert CONTEXTS > VOCABULARY, "more columns than tokens is the case tested here"
    tokens = np.random.default_rng(1).integers(5, VOCABULARY, size=3000).astype(np.uint16)
    first, second = (cooccurrence_embeddings(PackedTokens(tokens, CLS), facts, 4) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Bert", {}),
        ("Bert", {"hidden_size": 33, "num_attention_heads": 3}),
        ("Encoder", {"position_embedding_type": "learned"}),
        ("Seq2Seq", {"position_embedding_type": "learned"}),
    ],
)
def test_learned_positions_start_as_sinusoids_of_twice_the_tokens_size(family, fields):
    model = AutoModel.from_config(tiny_config(family, **fields))
    start_positions(model)
    tables = [p for name, p in model.named_parameters() if name.endswith("embed_positions.weight")]
    assert len(tables) == (2 if family == "Seq2Seq" else 1)
    tokens = model.get_input_embeddings().weight
    for table in tables:
        count, width = table.shape
        expected = sinusoidal_positions(torch.arange(count), 2 * ((width + 1) // 2), torch.float)[:, :width]
        ratio = table / expected
        assert torch.allclose(ratio[expected.abs() > 1e-3], ratio[1, 1], rtol=1e-4)
        assert table.square().mean().sqrt().item() == pytest.approx(2 * tokens.square().mean().sqrt().item(), rel=0.02)


def test_a_model_without_learned_positions_stays_as_it_is():
    model = AutoModel.from_config(tiny_config("Encoder"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_positions(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
