"""The Encoder family: pre-norm, no biases, rotary positions, gated GELU, embedding and final norm."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention, bidirectional_mask
from .configuration_encoder import TinyTransformerEncoderConfig
from .heads import (
    MaskedLMForward,
    MultipleChoiceForward,
    QuestionAnsweringForward,
    SequenceClassificationForward,
    TokenClassificationForward,
)
from .layers import (
    GatedMLP,
    PredictionHead,
    RotaryEmbedding,
    TinyTransformerPreTrainedModel,
    mean_pool,
    sinusoidal_positions,
)


class TinyTransformerEncoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)). The embedding norm has normed the first layer's input already."""

    def __init__(self, config: TinyTransformerEncoderConfig, layer_idx: int):
        super().__init__()
        norm_first = layer_idx > 0
        self.attention_norm = _norm(config) if norm_first else nn.Identity()
        self.attention = MultiHeadAttention(config, layer_idx, dropout=config.attention_dropout)
        self.mlp_norm = _norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, T, hidden_size) -> (B, T, hidden_size)."""
        attended, _ = self.attention(
            self.attention_norm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class TinyTransformerEncoderPreTrainedModel(TinyTransformerPreTrainedModel):
    """Loading, saving and initialisation of the family."""

    config: TinyTransformerEncoderConfig
    _no_split_modules = ["TinyTransformerEncoderLayer"]
    _can_record_outputs = {"hidden_states": TinyTransformerEncoderLayer, "attentions": MultiHeadAttention}

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

    def pool(self, outputs: BaseModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """One vector per text, (B, hidden_size), as `classifier_pooling` says."""
        if self.config.classifier_pooling == "cls":
            return outputs.last_hidden_state[:, 0]
        return mean_pool(outputs.last_hidden_state, attention_mask)


class TinyTransformerEncoderModel(TinyTransformerEncoderPreTrainedModel):
    """The trunk: token ids in, one contextual vector per token out."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "rotary":
            self.rotary_emb = RotaryEmbedding(config)
        self.embed_norm = _norm(config)
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(TinyTransformerEncoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = _norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,  # taken for callers that always send them; has no meaning here
        **kwargs,
    ) -> BaseModelOutput:
        """Args:
        input_ids: (B, T); or inputs_embeds (B, T, hidden_size).
        attention_mask: (B, T), 1 = real token, 0 = padding.
        position_ids: (B, T). Where they restart and no attention_mask is given, the row holds several documents and
            none sees its neighbour.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        mask = bidirectional_mask(self.config, inputs_embeds, attention_mask, position_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)

        position_embeddings = None
        if self.config.position_embedding_type == "rotary":
            position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        elif self.config.position_embedding_type == "learned":
            inputs_embeds = inputs_embeds + self.embed_positions(position_ids)
        elif self.config.position_embedding_type == "sinusoidal":
            positions = sinusoidal_positions(position_ids, self.config.hidden_size, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds + positions

        hidden_states = self.embed_dropout(self.embed_norm(inputs_embeds))
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,  # flash attention finds packed documents by these
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class TinyTransformerEncoderForMaskedLM(MaskedLMForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk with a tied language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.model = TinyTransformerEncoderModel(config)
        self.head = _head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.post_init()


class TinyTransformerEncoderForSequenceClassification(
    SequenceClassificationForward, TinyTransformerEncoderPreTrainedModel
):
    """The trunk, pooled, with a classifier or regressor."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyTransformerEncoderModel(config)
        self.head = _head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class TinyTransformerEncoderForTokenClassification(TokenClassificationForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk with one label per token."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyTransformerEncoderModel(config)
        self.head = _head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class TinyTransformerEncoderForQuestionAnswering(QuestionAnsweringForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk with start and end scores per token."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.model = TinyTransformerEncoderModel(config)
        self.head = _head(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


class TinyTransformerEncoderForMultipleChoice(MultipleChoiceForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk, pooled, with one score per choice."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.model = TinyTransformerEncoderModel(config)
        self.head = _head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()


def _norm(config: TinyTransformerEncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


def _head(config: TinyTransformerEncoderConfig) -> PredictionHead:
    return PredictionHead(config, bias=False, eps=config.norm_eps)
