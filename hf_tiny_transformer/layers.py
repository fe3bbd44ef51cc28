"""The parts that several families are built of: positions, feed-forward networks, heads, pooling, the base class."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import PreTrainedModel


class TinyTransformerPreTrainedModel(PreTrainedModel):
    """What transformers should know of every family."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class RotaryEmbedding(nn.Module):
    """cos and sin of each position's angles (Su et al. 2021), scaled as `config.rope_parameters` says.

    The two buffers are not saved; `PreTrainedModel._init_weights` knows this class by its name and refills them after
    a load on the meta device.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: PreTrainedConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies (head_dim / 2,) and the scale 1.0; float, though a load in bf16 changes the default."""
        head_dim = config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """position_ids (B or 1, T) -> cos and sin, each (B or 1, T, head_dim), in the dtype of `hidden_states`."""
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive positions of the original Transformer (Vaswani et al. 2017, 3.5): (B, T) -> (B, T, hidden_size).

    Even features are sines, odd ones cosines, of wavelengths from 2 pi to 10000 * 2 pi.
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
        """(B, T, hidden_size) -> (B, T, hidden_size)."""
        return self.down_proj(self.dropout(self.act(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)))


class PredictionHead(nn.Module):
    """norm(act(dense(x))): what stands between the trunk and a language-model or classification output.

    The models call it `transform`. `head`, the end of `lm_head`, makes transformers' `infer_auto_device_map` take the
    one for the other, and `device_map="auto"` fails where the output matrix is tied.
    """

    def __init__(self, config: PreTrainedConfig, *, bias: bool, eps: float):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=eps, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., hidden_size)."""
        return self.norm(self.act(self.dense(hidden_states)))


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the real tokens: (B, T, D) and (B, T) with 1 = real -> (B, D)."""
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    weights = attention_mask.to(hidden_states.dtype).unsqueeze(-1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def last_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The last real token's vector, on whichever side the padding is: (B, T, D), (B, T) with 1 = real -> (B, D)."""
    if attention_mask is None:
        return hidden_states[:, -1]
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    last = (positions * (attention_mask != 0)).argmax(dim=-1)
    return hidden_states[torch.arange(last.shape[0], device=last.device), last]


def gather_targets(hidden_states: torch.Tensor, target_positions: torch.Tensor | None) -> torch.Tensor:
    """Keeps the positions whose prediction the loss reads, so that the vocabulary-wide head runs on them only.

    Args:
        hidden_states: (B, T, D).
        target_positions: (N,) indices into the flattened B * T tokens, or None for all.

    Returns:
        (N, D), or `hidden_states` unchanged.
    """
    if target_positions is None:
        return hidden_states
    return hidden_states.flatten(0, 1).index_select(0, target_positions)
