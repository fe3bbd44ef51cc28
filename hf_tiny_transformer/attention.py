"""Multi-head attention for all families. Self, cross and causal attention are arguments of one class."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from .masks import AttentionMask


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Queries come from `hidden_states`. Keys and values come from there too, or from `key_value_states`
    (cross-attention).

    Args:
        layer_idx: Index of the layer in the cache.
        is_causal: Whether a query attends to itself and earlier tokens only.
        bias: Whether the four projections have a bias.
        dropout: Rate on the attention weights during training.
        sliding_window: Tokens that a query sees on either side, itself included; flash attention has no other mask.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layer_idx: int,
        *,
        is_causal: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        sliding_window: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal  # must exist: transformers' sdpa treats a missing attribute as True
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.sliding_window = sliding_window
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: AttentionMask = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `hidden_states` to themselves or to `key_value_states`.

        Args:
            hidden_states: (B, T, hidden_size).
            attention_mask: From `masks.py`.
            position_embeddings: cos and sin, each (B or 1, T, head_dim); rotates queries and keys in self-attention.
            key_value_states: (B, S, hidden_size).
            past_key_values: The cache to read and extend; an `EncoderDecoderCache` for cross-attention.
            kwargs: For the attention backend.

        Returns:
            The attended states (B, T, hidden_size), and the weights (B, H, T, S) if the backend is eager, else None.
        """
        batch_shape = hidden_states.shape[:-1]
        query = self._split_heads(self.q_proj(hidden_states))
        if key_value_states is None:
            key, value = self._split_heads(self.k_proj(hidden_states)), self._split_heads(self.v_proj(hidden_states))
            if position_embeddings is not None:
                query, key = apply_rotary(query, key, *position_embeddings)
            if past_key_values is not None:
                cache = getattr(past_key_values, "self_attention_cache", past_key_values)
                key, value = cache.update(key, value, self.layer_idx)
        else:
            key, value = self._cross_keys_values(key_value_states, past_key_values)
            if isinstance(attention_mask, torch.Tensor) and is_flash_attention_requested(self.config):
                key, value, lengths = without_padding(query, key, value, attention_mask)
                attention_mask, kwargs = None, kwargs | lengths

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(attended.reshape(*batch_shape, -1).contiguous()), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape (B, T, H * D) to (B, H, T, D)."""
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _cross_keys_values(
        self, key_value_states: torch.Tensor, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the encoder's states, or read them from the cache: they do not change while decoding."""
        cache = past_key_values if isinstance(past_key_values, EncoderDecoderCache) else None
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values  # type: ignore[union-attr, return-value]  # set by the update below
        key = self._split_heads(self.k_proj(key_value_states))
        value = self._split_heads(self.v_proj(key_value_states))
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key, value


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax(q k^T * scaling + mask) v (Vaswani et al. 2017, equation 1).

    `query` is (B, H, T, D); `key` and `value` are (B, H, S, D). `attention_mask` (B, 1, T, S) is additive: 0 = visible,
    the dtype's minimum = hidden.

    Returns:
        The attended values (B, T, H, D) and the weights (B, H, T, S).
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate each pair of features by its position's angle (Su et al. 2021, RoFormer, equation 34).

    `query` and `key` are (B, H, T, D); `cos` and `sin` are (B or 1, T, D), shared by all heads.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def rotate(states: torch.Tensor) -> torch.Tensor:
        # Under autocast cos and sin are fp32: the products have that precision, the result has the dtype of the values.
        return (states * cos + rotate_half(states) * sin).to(states.dtype)

    return rotate(query), rotate(key)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Map (x1, x2), the halves of the last axis, to (-x2, x1)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def without_padding(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor | int]]:
    """Remove the encoder's padding for flash cross-attention.

    transformers would apply `attention_mask` to the queries as well, which belong to another text. Sequence
    boundaries replace the mask (B, S), 1 = real token, 0 = padding.

    Returns:
        Keys and values of the N real tokens, (1, H, N, D), and the keyword arguments with the boundaries of the B
        sequences.
    """
    batch_size, _, length, _ = query.shape
    real = attention_mask.bool()
    key, value = (states.transpose(1, 2)[real].transpose(0, 1).unsqueeze(0) for states in (key, value))
    ends = real.sum(dim=-1).cumsum(dim=0)
    return (
        key,
        value,
        {
            "cu_seq_lens_q": torch.arange(batch_size + 1, dtype=torch.int32, device=query.device) * length,
            "cu_seq_lens_k": nn.functional.pad(ends, (1, 0)).to(torch.int32),
            "max_length_q": length,
            "max_length_k": real.shape[1],
        },
    )
