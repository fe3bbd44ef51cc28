"""Parts shared by several families: the base class, rotary and sinusoidal positions, MLP, prediction head, pooling."""

import copy
from typing import TypedDict

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import PreTrainedModel


class ForwardKwargs(TypedDict, total=False):
    """What a forward passes on: `TransformersKwargs`, without `position_ids`, which every forward names."""

    num_items_in_batch: torch.Tensor | int | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    cu_seq_lens_q: torch.Tensor | None
    cu_seq_lens_k: torch.Tensor | None
    max_length_q: int | None
    max_length_k: int | None
    shift_labels: torch.Tensor | None


class TinyTransformerPreTrainedModel(PreTrainedModel):
    """Base class of all families: what transformers needs to know about them.

    Inputs of every forward: `input_ids`, `token_type_ids` and `position_ids` (B, T); `attention_mask` (B, T), with a
    cache (B, past + T), 1 = real token, 0 = padding; `inputs_embeds` (B, T, hidden_size), instead of `input_ids`. Where
    `position_ids` restart and there is no `attention_mask`, a new document begins, and documents do not attend to each
    other. A forward returns the loss if there are labels.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def pool(self, outputs: ModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Reduce the trunk's outputs to one vector per text, (B, hidden_size); defined by families that classify."""
        raise NotImplementedError


class RotaryEmbedding(nn.Module):
    """cos and sin of the rotation angles of each position (Su et al. 2021), scaled as in `config.rope_parameters`.

    These may be nested by layer type; then the settings of `layer_type` are used.
    The two buffers are not saved. `PreTrainedModel._init_weights` recognises this class by its name and fills them
    after a model was loaded on the meta device.
    """

    def __init__(self, config: PreTrainedConfig, layer_type: str = "full_attention"):
        super().__init__()
        if layer_type in config.rope_parameters:
            config = copy.copy(config)
            config.rope_parameters = config.rope_parameters[layer_type]
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: PreTrainedConfig, **kwargs: object) -> tuple[torch.Tensor, float]:
        """Compute the inverse frequencies (head_dim / 2,); the scale is 1.0."""
        head_dim = config.hidden_size // config.num_attention_heads
        # The dtype is explicit because from_pretrained(dtype=torch.bfloat16) changes the default dtype.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute cos and sin, each (B or 1, T, head_dim), in fp32, and cast them to the dtype of `hidden_states`."""
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Compute the additive positions of the original Transformer (Vaswani et al. 2017): (B, T) -> (B, T, hidden_size).

    Even features are sines and odd ones cosines, with wavelengths from 2 pi to 10000 * 2 pi.
    """
    exponents = torch.arange(0, hidden_size, 2, dtype=torch.float, device=position_ids.device) / hidden_size
    angles = position_ids[..., None].float() / 10_000.0**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(dtype)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, "GLU variants improve Transformer")."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (B, T, hidden_size) to (B, T, hidden_size)."""
        return self.down_proj(self.dropout(self.act(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)))


class PredictionHead(nn.Module):
    """norm(act(dense(x))), applied between the trunk and an output layer.

    The models name it `transform`. With the name `head`, a suffix of `lm_head`, transformers' `infer_auto_device_map`
    confuses the two, and `device_map="auto"` fails for tied output matrices.
    """

    def __init__(self, config: PreTrainedConfig, *, bias: bool, eps: float):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=eps, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (..., hidden_size) to (..., hidden_size)."""
        return self.norm(self.act(self.dense(hidden_states)))


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Average over the real tokens: (B, T, D) and (B, T) -> (B, D)."""
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    weights = attention_mask.to(hidden_states.dtype).unsqueeze(-1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def last_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Select the last real token, with padding on either side: (B, T, D) and (B, T) -> (B, D)."""
    if attention_mask is None:
        return hidden_states[:, -1]
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    last = (positions * (attention_mask != 0)).argmax(dim=-1)
    return hidden_states[torch.arange(last.shape[0], device=last.device), last]


def gather_targets(hidden_states: torch.Tensor, target_positions: torch.Tensor | None) -> torch.Tensor:
    """Select the positions with a target, on which alone the vocabulary-wide head runs: (B, T, D) -> (N, D).

    `target_positions` are (N,) indices into the flattened B * T tokens; None selects all, and keeps the shape.
    """
    if target_positions is None:
        return hidden_states
    return hidden_states.flatten(0, 1).index_select(0, target_positions)


def keep_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Select the last N positions, 0 = all, or the given ones: (B, T, D) -> (B, N, D)."""
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden_states[:, kept]
