"""The one attention of all four families: self, cross and causal attention are data, not classes."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling + mask) v, written out (Vaswani et al. 2017, equation 1).

    Args:
        query, key, value: (B, H, T, D), (B, H, S, D), (B, H, S, D).
        attention_mask: additive, (B, 1, T, S): 0 where a query may look, the dtype's minimum where it may not.

    Returns:
        The mixed values (B, T, H, D) and the weights (B, H, T, S).
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(x1, x2) -> (-x2, x1) along the last axis: a quarter turn of each pair of features."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns each feature pair of query and key by its position's angle (Su et al. 2021, RoFormer, equation 34).

    Args:
        query, key: (B, H, T, D).
        cos, sin: (B or 1, T, D), shared by all heads.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


def bidirectional_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """The mask of an encoder, in the form the configured attention backend wants; None where nothing is hidden.

    Several documents may share a row: where `position_ids` (B, T) restart and no `attention_mask` is given, a token
    sees its own document only. transformers finds packed rows by itself for causal masks, not for bidirectional ones.

    Args:
        attention_mask: (B, T), 1 = real token, 0 = padding; or a ready 4-D mask, passed through.

    Raises:
        ValueError: several packed rows under flash attention, which reads packing from the positions of a single row.
    """
    documents = packed_documents(config, inputs_embeds, attention_mask, position_ids)
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        and_mask_function=None if documents is None else packed_sequence_mask_function(documents),
    )


def causal_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> torch.Tensor | None:
    """The mask of a decoder: a token sees itself and what is before it, in its own document.

    Args:
        attention_mask: (B, T), or (B, past + T) with a cache; 1 = real token, 0 = padding; or a ready 4-D mask.
        past_key_values: a cache that holds something. transformers looks for packed rows only where there is none.

    Raises:
        ValueError: as `bidirectional_mask`.
    """
    if past_key_values is None:
        packed_documents(config, inputs_embeds, attention_mask, position_ids)
    return create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
    )


def cross_attention_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    encoder_position_ids: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """What a decoder (B, T) sees of its encoder (B, S): all real tokens; where both are packed, the n-th document of
    the decoder's row sees the n-th of the encoder's.

    Raises:
        ValueError: packed rows under flash attention, which cannot pair documents.
    """
    documents = packed_documents(config, inputs_embeds, None, position_ids)
    encoder_documents = packed_documents(config, encoder_hidden_states, encoder_attention_mask, encoder_position_ids)
    both_given = position_ids is not None and encoder_position_ids is not None and encoder_attention_mask is None
    paired = None
    if both_given and (documents is not None or encoder_documents is not None):
        if is_flash_attention_requested(config):
            raise ValueError("flash attention cannot pair packed documents: use sdpa or flex_attention")
        # where no row of one side holds more than one document, transformers says None: all are number 0
        if documents is None:
            documents = torch.zeros_like(position_ids).expand(inputs_embeds.shape[0], -1)
        if encoder_documents is None:
            encoder_documents = torch.zeros_like(encoder_position_ids).expand(inputs_embeds.shape[0], -1)

        def paired(batch: int, head: int, query: int, key: int) -> torch.Tensor:
            return documents[batch, query] == encoder_documents[batch, key]

    return create_bidirectional_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=encoder_attention_mask,
        encoder_hidden_states=encoder_hidden_states,
        and_mask_function=paired,
    )


def packed_documents(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """(B, T) number of each token's document in its row, or None where every row holds one.

    Raises:
        ValueError: several packed rows under flash attention.
    """
    if attention_mask is not None or position_ids is None:
        return None
    batch_size = inputs_embeds.shape[0]
    documents = find_packed_sequence_indices(position_ids.expand(batch_size, -1))
    if documents is not None and batch_size > 1 and is_flash_attention_requested(config):
        # its mask holds padding only and would drop ours without a word
        raise ValueError(
            "flash attention tells packed documents apart in one row only: flatten the batch to (1, B * T)"
        )
    return documents


def without_padding(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor | int]]:
    """What flash attention needs to ask padded texts: transformers takes a mask for that of the queries, too, which in
    cross-attention are another text's; told where each text begins, it needs none.

    Args:
        query, key, value: (B, H, T, D), (B, H, S, D), (B, H, S, D).
        attention_mask: (B, S), 1 = real token, 0 = padding.

    Returns:
        The real tokens' keys and values, (1, H, N, D), and the keyword arguments that tell B texts of queries and of
        keys apart.
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


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Queries come from `hidden_states`; keys and values too, unless `key_value_states` are given (cross-attention).

    Args:
        is_causal: a query sees itself and what is before it. Always set: sdpa takes a missing value for True.
        dropout: on the attention weights, while training.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layer_idx: int,
        *,
        is_causal: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the attended states (B, T, hidden_size) and, with the eager backend, the weights (B, H, T, S)."""
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
            if attention_mask is not None and is_flash_attention_requested(self.config):
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
            **kwargs,
        )
        return self.o_proj(attended.reshape(*batch_shape, -1).contiguous()), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, H * D) -> (B, H, T, D)."""
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _cross_keys_values(
        self, key_value_states: torch.Tensor, past_key_values: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's answer stays the same while decoding: projected at the first step, then read from the cache."""
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key = self._split_heads(self.k_proj(key_value_states))
        value = self._split_heads(self.v_proj(key_value_states))
        if past_key_values is not None:
            key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return key, value
