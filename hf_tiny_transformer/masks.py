"""Attention masks, built once per forward pass by transformers for the attention backend in use.

Arguments: `inputs_embeds` (B, T, hidden_size); `attention_mask` (B, T), 1 = real token, 0 = padding, or a 4-D mask,
which is returned unchanged; `position_ids` (B or 1, T). Where these restart and there is no `attention_mask`, a new
document begins; a token attends to its own document only.

Result: None when nothing is hidden, which lets sdpa choose its fast kernels. Otherwise (B, 1, T, S): for sdpa boolean,
True = visible; for eager additive, 0 = visible and the dtype's minimum = hidden; for flex attention a `BlockMask`;
for flash attention the 2-D padding mask.
"""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.utils.generic import is_flash_attention_requested

AttentionMask = torch.Tensor | BlockMask | None
DENSE = ("sdpa", "eager")  # backends that read a whole mask


def bidirectional_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    layer_type: str = "full_attention",
) -> AttentionMask:
    """Build the mask of an encoder: a token attends to all real tokens of its document, or of its window.

    Raises:
        ValueError: If several rows are packed under flash attention.
    """
    window = config.sliding_window if layer_type == "sliding_attention" else None
    documents = packed_documents(config, inputs_embeds, attention_mask, position_ids)
    if documents is not None and config._attn_implementation in DENSE:
        visible = same_document(documents, documents)
        visible = visible if window is None else visible.triu(-window).tril(window)
        return dense_mask(config, visible, inputs_embeds.dtype)
    create_mask = create_bidirectional_mask if window is None else create_bidirectional_sliding_window_mask
    return create_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        and_mask_function=None if documents is None else packed_sequence_mask_function(documents),
    )


def causal_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    layer_type: str = "full_attention",
) -> AttentionMask:
    """Build the mask of a decoder: a token attends to itself and to earlier tokens of its document, or of its window.

    With a cache, `attention_mask` is (B, past + T) and restarting positions do not separate documents. With a static
    cache, `generate` passes the masks of all layer types.

    Raises:
        ValueError: If several rows are packed under flash attention.
    """
    if isinstance(attention_mask, dict):
        return attention_mask[layer_type]
    window = config.sliding_window if layer_type == "sliding_attention" else None
    if past_key_values is None:
        documents = packed_documents(config, inputs_embeds, attention_mask, position_ids)
        if documents is not None and config._attn_implementation in DENSE:
            visible = same_document(documents, documents).tril()
            visible = visible if window is None else visible.triu(1 - window)
            return dense_mask(config, visible, inputs_embeds.dtype)
    create_mask = create_causal_mask if window is None else create_sliding_window_causal_mask
    return create_mask(
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
) -> AttentionMask:
    """Build the mask of cross-attention: a decoder token attends to all real encoder tokens.

    The encoder's inputs have length S. If both sides are packed, the n-th document of the decoder's row attends to the
    n-th of the encoder's.

    Raises:
        ValueError: If rows are packed under flash attention, which cannot pair documents.
    """
    documents = packed_documents(config, inputs_embeds, None, position_ids)
    encoder_documents = packed_documents(config, encoder_hidden_states, encoder_attention_mask, encoder_position_ids)
    both_given = position_ids is not None and encoder_position_ids is not None and encoder_attention_mask is None
    of_same_document = None
    if both_given and (documents is not None or encoder_documents is not None):
        if is_flash_attention_requested(config):
            raise ValueError("flash attention cannot pair packed documents: use sdpa or flex_attention")
        # None means one document per row on that side: number 0 everywhere.
        if documents is None:
            documents = inputs_embeds.new_zeros(inputs_embeds.shape[:2], dtype=torch.long)
        if encoder_documents is None:
            encoder_documents = inputs_embeds.new_zeros(encoder_hidden_states.shape[:2], dtype=torch.long)
        if config._attn_implementation in DENSE:
            return dense_mask(config, same_document(documents, encoder_documents), inputs_embeds.dtype)

        def of_same_document(batch: int, head: int, query: int, key: int) -> torch.Tensor:
            return documents[batch, query] == encoder_documents[batch, key]

    return create_bidirectional_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=encoder_attention_mask,
        encoder_hidden_states=encoder_hidden_states,
        and_mask_function=of_same_document,
    )


def same_document(documents: torch.Tensor, of_keys: torch.Tensor) -> torch.Tensor:
    """Return (B, T, S) bool, True where query and key are of the same document, from their numbers (B, T), (B, S)."""
    return documents.unsqueeze(2) == of_keys.unsqueeze(1)


def dense_mask(config: PreTrainedConfig, visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Write the mask of sdpa or eager at once, from `visible` (B, T, S).

    transformers would do it with vmap over a function of one entry, in thirty times as many operations.
    """
    if config._attn_implementation == "eager":
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible.device)
        return torch.where(visible, torch.zeros_like(hidden), hidden).unsqueeze(1)
    return visible.unsqueeze(1)


def packed_documents(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """Assign numbers to the documents of each row.

    Returns:
        (B, T) index of each token's document in its row, or None if every row holds one document.

    Raises:
        ValueError: If several rows are packed under flash attention.
    """
    if attention_mask is not None or position_ids is None:
        return None
    batch_size = inputs_embeds.shape[0]
    documents = find_packed_sequence_indices(position_ids.expand(batch_size, -1))
    if documents is not None and batch_size > 1 and is_flash_attention_requested(config):
        # transformers reads the boundaries from the positions of a single row and ignores them in a larger batch.
        raise ValueError(
            "flash attention separates packed documents in a batch of one row only: flatten the batch to (1, B * T)"
        )
    return documents
