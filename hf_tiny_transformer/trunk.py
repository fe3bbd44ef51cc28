"""The pre-norm trunk that Encoder, Decoder and both halves of Seq2Seq are built of."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention
from .configuration_trunk import TinyTransformerTrunkConfig
from .layers import (
    GatedMLP,
    PredictionHead,
    RotaryEmbedding,
    TinyTransformerPreTrainedModel,
    sinusoidal_positions,
)


class TinyTransformerLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), where a decoder asks an encoder also x + cross_attention(norm(x)), then x + mlp(norm(x)).

    The embedding norm has normed the first layer's input already.
    """

    def __init__(
        self,
        config: TinyTransformerTrunkConfig,
        layer_idx: int,
        *,
        is_causal: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__()
        self.attention_norm = layer_norm(config) if layer_idx > 0 else nn.Identity()
        self.attention = MultiHeadAttention(config, layer_idx, is_causal=is_causal, dropout=config.attention_dropout)
        if cross_attention:
            self.cross_attention_norm = layer_norm(config)
            self.cross_attention = MultiHeadAttention(config, layer_idx, dropout=config.attention_dropout)
        self.mlp_norm = layer_norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, T, hidden_size) -> (B, T, hidden_size); `encoder_hidden_states` (B, S, hidden_size).

        `position_ids` are what flash attention finds packed documents by; cross-attention has no use for them.
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
            answered, _ = self.cross_attention(
                self.cross_attention_norm(hidden_states),
                attention_mask=encoder_attention_mask,
                key_value_states=encoder_hidden_states,
                past_key_values=past_key_values,
                **kwargs,
            )
            hidden_states = hidden_states + answered
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class TinyTransformerTrunkPreTrainedModel(TinyTransformerPreTrainedModel):
    """Initialisation of the families that are built of this trunk."""

    _no_split_modules = ["TinyTransformerLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal; smaller by sqrt(2 L) where a matrix writes into the residual stream (GPT-2's scheme)."""
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
    """Embeddings, positions, layers and a last norm: the parameters of encoder and decoder, under the same names.

    The subclass's `forward` makes the mask, and so decides who sees whom.
    """

    def __init__(
        self,
        config: TinyTransformerTrunkConfig,
        *,
        num_layers: int | None = None,
        is_causal: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__(config)
        self.embed_tokens = self.token_embeddings(config)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "rotary":
            self.rotary_emb = RotaryEmbedding(config)
        self.embed_norm = layer_norm(config)
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            TinyTransformerLayer(config, i, is_causal=is_causal, cross_attention=cross_attention)
            for i in range(num_layers or config.num_hidden_layers)
        )
        self.norm = layer_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def token_embeddings(self, config: TinyTransformerTrunkConfig) -> nn.Module:
        """One vector for each word of the vocabulary; where tokens are no words, a subclass has another."""
        return nn.Embedding(config.vocab_size, config.hidden_size)

    def embed(self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """(B, T) -> (B, T, hidden_size), or the embeddings that were given.

        Raises:
            ValueError: both or none are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def add_positions(
        self, inputs_embeds: torch.Tensor, position_ids: torch.LongTensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """The first layer's input (B, T, hidden_size), and cos and sin for the layers where positions are rotary."""
        position_embeddings = None
        if self.config.position_embedding_type == "rotary":
            position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        elif self.config.position_embedding_type == "learned":
            inputs_embeds = inputs_embeds + self.embed_positions(position_ids)
        elif self.config.position_embedding_type == "sinusoidal":
            positions = sinusoidal_positions(position_ids, self.config.hidden_size, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds + positions
        return self.embed_dropout(self.embed_norm(inputs_embeds)), position_embeddings


def layer_norm(config: TinyTransformerTrunkConfig) -> nn.LayerNorm:
    """Without a bias, like every norm of these families."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


def prediction_head(config: TinyTransformerTrunkConfig) -> PredictionHead:
    """What stands between the trunk and an output."""
    return PredictionHead(config, bias=False, eps=config.norm_eps)
