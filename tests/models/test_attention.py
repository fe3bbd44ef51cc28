"""Protects the arithmetic of attention: textbook numbers, heads, cross-attention, caches, masks, rotary positions."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_tiny_transformer import TinyTransformerEncoderConfig
from hf_tiny_transformer.attention import (
    MultiHeadAttention,
    apply_rotary,
    eager_attention_forward,
    rotate_half,
)
from hf_tiny_transformer.layers import RotaryEmbedding
from hf_tiny_transformer.masks import bidirectional_mask, causal_mask, cross_attention_mask


def attention(
    hidden_size: int = 64, heads: int = 8, implementation: str = "eager", causal: bool = False
) -> MultiHeadAttention:
    """Build a block in float64, so that tolerances measure the arithmetic and not rounding."""
    config = TinyTransformerEncoderConfig(
        hidden_size=hidden_size, num_attention_heads=heads, attn_implementation=implementation
    )
    return MultiHeadAttention(config, layer_idx=0, is_causal=causal).double().eval()


def test_textbook_scores_and_weights():
    """q.k = 112 and 96 with keys of size 64: divided by 8 they are 14 and 12, and softmax gives 0.88 and 0.12."""
    block = attention(hidden_size=64, heads=1)
    for projection in (block.q_proj, block.k_proj, block.v_proj, block.o_proj):
        torch.nn.init.eye_(projection.weight)
    query = torch.ones(1, 1, 64, dtype=torch.double)
    keys = torch.stack((query[0, 0] * 112 / 64, query[0, 0] * 96 / 64, query[0, 0] * 0))  # the last score is 0

    mixed, weights = block(query, key_value_states=keys[None])

    weights = weights[0, 0, 0]
    scores = (weights / weights[2]).log()
    torch.testing.assert_close(scores, torch.tensor([14.0, 12.0, 0.0], dtype=torch.double), atol=1e-5, rtol=0)
    assert [round(weight, 2) for weight in weights.tolist()] == [0.88, 0.12, 0.0]
    torch.testing.assert_close(mixed[0, 0], weights @ keys)


def test_output_is_the_sum_over_heads():
    """Concatenating eight heads and projecting equals adding each head's projection by its slice of o_proj."""
    block, states = attention(hidden_size=64, heads=8), torch.randn(2, 5, 64, dtype=torch.double)
    together, weights = block(states)

    alone = torch.zeros_like(together)
    for head in range(8):
        rows = slice(head * 8, (head + 1) * 8)
        query, key, value = (
            (states @ projection.weight[rows].T)[:, None] for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        mixed, head_weights = eager_attention_forward(block, query, key, value, None, scaling=8**-0.5)
        alone += mixed[:, :, 0] @ block.o_proj.weight[:, rows].T
        torch.testing.assert_close(weights[:, head], head_weights[:, 0])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cross_attention_reads_the_given_states(implementation: str):
    """Queries come from one sequence, keys and values from another; no mask."""
    block = attention(implementation=implementation)
    states, others = torch.randn(2, 3, 64, dtype=torch.double), torch.randn(2, 7, 64, dtype=torch.double)
    query, key, value = (
        projection(given).view(2, -1, 8, 8).transpose(1, 2)
        for projection, given in ((block.q_proj, states), (block.k_proj, others), (block.v_proj, others))
    )
    expected = torch.softmax(query @ key.mT / 8**0.5, dim=-1) @ value

    mixed, _ = block(states, key_value_states=others)

    torch.testing.assert_close(mixed, block.o_proj(expected.transpose(1, 2).flatten(2)), atol=1e-6, rtol=1e-6)
    changed = others.clone()
    changed[:, -1] += 1.0  # the last key reaches the first query
    assert not torch.equal(block(states, key_value_states=changed)[0][:, 0], mixed[:, 0])


def test_self_attention_with_a_cache_step_by_step():
    block, states = attention(implementation="sdpa", causal=True), torch.randn(2, 5, 64, dtype=torch.double)
    rotary = RotaryEmbedding(block.config)
    positions = torch.arange(5)[None]
    whole, _ = block(states, position_embeddings=rotary(states, positions))

    cache = DynamicCache()
    steps = [
        block(
            states[:, t : t + 1],
            position_embeddings=rotary(states, positions[:, t : t + 1]),
            past_key_values=cache,
        )[0]
        for t in range(5)
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=1e-6)


def test_cross_attention_cache_projects_the_encoder_once():
    block = attention(implementation="sdpa")
    states, others = torch.randn(2, 1, 64, dtype=torch.double), torch.randn(2, 7, 64, dtype=torch.double)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first, _ = block(states, key_value_states=others, past_key_values=cache)
    second, _ = block(states, key_value_states=torch.full_like(others, torch.nan), past_key_values=cache)
    torch.testing.assert_close(first, block(states, key_value_states=others)[0])
    assert torch.equal(first, second)
    assert cache.cross_attention_cache.layers[0].keys.shape == (2, 8, 7, 8)


def test_packed_mask_is_block_diagonal():
    """Restarting positions separate the documents of each row, unless there is an attention mask."""
    config, states = attention().config, torch.zeros(2, 5, 64)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    mask = bidirectional_mask(config, states, None, positions)
    documents = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    assert torch.equal(mask[:, 0] == 0, documents[:, :, None] == documents[:, None, :])

    given = bidirectional_mask(config, states, torch.ones(2, 5, dtype=torch.long), positions)
    assert given is None or bool((given == 0).all())


def test_causal_mask_is_a_triangle_per_document():
    """A token attends to earlier tokens of its document; with an attention mask, of its row."""
    config, states = attention().config, torch.zeros(2, 5, 64)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    documents = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    triangle = torch.ones(5, 5, dtype=torch.bool).tril()
    mask = causal_mask(config, states, None, positions)
    assert torch.equal(mask[:, 0] == 0, (documents[:, :, None] == documents[:, None, :]) & triangle)

    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    mask = causal_mask(config, states, real, positions)
    assert torch.equal((mask[:, 0] == 0)[:, 2:], (triangle & real[:, None].bool())[:, 2:])


def test_causal_mask_covers_the_cache():
    """Two new tokens after three cached ones."""
    config, cache = attention().config, DynamicCache()
    cache.update(torch.zeros(1, 8, 3, 8), torch.zeros(1, 8, 3, 8), 0)
    mask = causal_mask(config, torch.zeros(1, 2, 64), None, torch.tensor([[3, 4]]), cache)
    assert torch.equal(mask[0, 0] == 0, torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool())


def test_cross_mask_pairs_the_nth_documents():
    """The n-th document attends to the n-th; without positions on both sides, to everything."""
    config, states, others = attention().config, torch.zeros(2, 4, 64), torch.zeros(2, 5, 64)
    positions, encoder_positions = (
        torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]]),
        torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]),
    )
    mask = cross_attention_mask(config, states, others, None, positions, encoder_positions)
    expected = torch.tensor([[[1, 1, 0, 0, 0]] * 3 + [[0, 0, 1, 1, 1]], [[1, 1, 1, 1, 1]] * 4])
    assert torch.equal(mask[:, 0] == 0, expected.bool())

    for given in ((None, None), (None, encoder_positions), (positions, None)):
        free = cross_attention_mask(config, states, others, None, *given)
        assert free is None or bool((free == 0).all())
    padded = cross_attention_mask(config, states, others, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    assert torch.equal(padded[:, 0] == 0, torch.tensor([[[1, 1, 1, 0, 0]] * 4, [[1, 1, 1, 1, 1]] * 4]).bool())


def test_several_packed_rows_are_rejected_under_flash_attention():
    """Flash attention in transformers reads the boundaries of one row only, and ignores them in larger batches."""
    config, positions = attention(implementation="flash_attention_2").config, torch.tensor([[0, 1, 0, 1, 2]])
    with pytest.raises(ValueError, match="one row only"):
        bidirectional_mask(config, torch.zeros(2, 5, 64), None, positions)
    assert bidirectional_mask(config, torch.zeros(1, 5, 64), None, positions) is None
    assert bidirectional_mask(config, torch.zeros(2, 5, 64), None, torch.arange(5)[None]) is None


def test_rotation_keeps_norms_and_can_be_reversed():
    config = TinyTransformerEncoderConfig(hidden_size=64, num_attention_heads=4)
    query, key = torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 16)
    cos, sin = RotaryEmbedding(config)(query, torch.arange(9)[None])
    rotated_query, rotated_key = apply_rotary(query, key, cos, sin)
    torch.testing.assert_close(rotated_query.norm(dim=-1), query.norm(dim=-1))
    torch.testing.assert_close(rotated_key.norm(dim=-1), key.norm(dim=-1))
    torch.testing.assert_close(rotated_query[:, :, 0], query[:, :, 0])  # position 0 is not rotated
    assert not torch.allclose(rotated_query[:, :, 1], query[:, :, 1], atol=1e-2)
    torch.testing.assert_close(apply_rotary(rotated_query, rotated_key, cos, -sin)[0], query, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotate_half(rotate_half(query)), -query)


def test_rotary_scores_depend_on_the_distance():
    config = TinyTransformerEncoderConfig(hidden_size=64, num_attention_heads=4)
    query, key = torch.randn(1, 1, 1, 16).double(), torch.randn(1, 1, 1, 16).double()
    rotary = RotaryEmbedding(config)

    def score(query_position: int, key_position: int) -> float:
        rotated_query, _ = apply_rotary(query, key, *rotary(query, torch.tensor([[query_position]])))
        _, rotated_key = apply_rotary(query, key, *rotary(key, torch.tensor([[key_position]])))
        return (rotated_query * rotated_key).sum().item()

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(1, 3) == pytest.approx(score(101, 103), abs=1e-4)
    assert abs(score(3, 1) - score(4, 1)) > 1e-2
    assert abs(score(3, 1) - score(1, 3)) > 1e-2
