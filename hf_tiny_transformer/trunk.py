"""The pre-norm trunk of the Encoder, the Decoder and both halves of the Seq2Seq family."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention
from .configuration_trunk import FULL, SLIDING, TinyTransformerTrunkConfig
from .layers import GatedMLP, PredictionHead, RotaryEmbedding, TinyTransformerPreTrainedModel, sinusoidal_positions
from .masks import AttentionMask


class TinyTransformerLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), optionally x + cross_attention(norm(x)), then x + mlp(norm(x)).

    The first layer has no attention norm: the embedding norm has already normalised its input.
    """

    def __init__(
        self,
        config: TinyTransformerTrunkConfig,
        layer_idx: int,
        *,
        layer_type: str = FULL,
        is_causal: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__()
        self.layer_type = layer_type
        window = config.sliding_window if layer_type == SLIDING else None
        if window is not None and not is_causal:
            window += 1  # half the window in an encoder does not count the token itself
        self.attention_norm = layer_norm(config) if layer_idx > 0 else nn.Identity()
        self.attention = MultiHeadAttention(
            config, layer_idx, is_causal=is_causal, dropout=config.attention_dropout, sliding_window=window
        )
        if cross_attention:
            self.cross_attention_norm = layer_norm(config)
            self.cross_attention = MultiHeadAttention(config, layer_idx, dropout=config.attention_dropout)
        self.mlp_norm = layer_norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: AttentionMask = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: AttentionMask = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Map (B, T, hidden_size) to (B, T, hidden_size).

        Both masks come from `masks.py`. `encoder_hidden_states` (B, S, hidden_size) are for cross-attention.
        `position_embeddings` are cos and sin of rotary positions. Flash attention finds packed documents by
        `position_ids` (B or 1, T); cross-attention ignores them.
        """
        attended, _ = self.attention(
            self.attention_norm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        if encoder_hidden_states is not None:
            attended, _ = self.cross_attention(
                self.cross_attention_norm(hidden_states),
                attention_mask=encoder_attention_mask,
                key_value_states=encoder_hidden_states,
                past_key_values=past_key_values,
                **kwargs,
            )
            hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class TinyTransformerTrunkPreTrainedModel(TinyTransformerPreTrainedModel):
    """Weight initialisation of the families built on this trunk."""

    _no_split_modules = ["TinyTransformerLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw from a truncated normal, scaled by 1 / sqrt(2 L) for matrices into the residual stream (GPT-2)."""
        super()._init_weights(module)
        std_in = self.config.initializer_range
        std_out = std_in / math.sqrt(2 * self.config.num_hidden_layers)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.trunc_normal_(module.weight, std=std_in, a=-2 * std_in, b=2 * std_in)
        elif isinstance(module, MultiHeadAttention):
            init.trunc_normal_(module.o_proj.weight, std=std_out, a=-2 * std_out, b=2 * std_out)
        elif isinstance(module, GatedMLP):
            init.trunc_normal_(module.down_proj.weight, std=std_out, a=-2 * std_out, b=2 * std_out)


class TinyTransformerTrunk(TinyTransformerTrunkPreTrainedModel):
    """Embeddings, positions, layers and a final norm. Encoder and Decoder have the same parameters by name.

    A subclass defines `forward`, which builds the attention mask.
    """

    def __init__(
        self,
        config: TinyTransformerTrunkConfig,
        *,
        is_causal: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__(config)
        self.embed_tokens = self.token_embeddings()
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        side = config.get_text_config(decoder=is_causal)  # Seq2Seq has two
        if SLIDING not in side.layer_types:  # the number of layers may have been changed after init
            side.layer_types = [FULL] * side.num_hidden_layers
        layer_types = side.layer_types
        self.layer_types = sorted(set(layer_types))
        if config.position_embedding_type == "rotary":
            self.rotary_emb = nn.ModuleDict({kind: RotaryEmbedding(config, kind) for kind in self.layer_types})
        self.embed_norm = layer_norm(config)
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            TinyTransformerLayer(config, i, layer_type=kind, is_causal=is_causal, cross_attention=cross_attention)
            for i, kind in enumerate(layer_types)
        )
        self.norm = layer_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def token_embeddings(self) -> nn.Module:
        """Build the module that maps tokens to vectors; a subclass may embed something other than token ids."""
        return nn.Embedding(self.config.vocab_size, self.config.hidden_size)

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Embed the tokens, unless the caller has done so.

        Raises:
            ValueError: If both or neither are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def add_positions(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor] | None]]:
        """Add positions to the embeddings, or prepare rotary ones.

        Returns:
            The input of the first layer, (B, T, hidden_size); and, by layer type, cos and sin if positions are rotary,
            else None.
        """
        position_embeddings: dict[str, tuple[torch.Tensor, torch.Tensor] | None] = dict.fromkeys(self.layer_types)
        if self.config.position_embedding_type == "rotary":
            for kind, rotary in self.rotary_emb.items():
                position_embeddings[kind] = rotary(inputs_embeds, position_ids)
        elif self.config.position_embedding_type == "learned":
            inputs_embeds = inputs_embeds + self.embed_positions(position_ids)
        elif self.config.position_embedding_type == "sinusoidal":
            positions = sinusoidal_positions(position_ids, self.config.hidden_size, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds + positions
        return self.embed_dropout(self.embed_norm(inputs_embeds)), position_embeddings


def layer_norm(config: TinyTransformerTrunkConfig) -> nn.LayerNorm:
    """Build a LayerNorm without a bias, as everywhere in these families."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


def prediction_head(config: TinyTransformerTrunkConfig) -> PredictionHead:
    """Build the transform between the trunk and an output layer."""
    return PredictionHead(config, bias=False, eps=config.norm_eps)
