"""Compute every number of the tour with the classes and functions that the text is about."""

from __future__ import annotations

import torch
from torch import nn

from hf_tiny_transformer import (
    TinyTransformerBertConfig,
    TinyTransformerBertModel,
    TinyTransformerDecoderConfig,
    TinyTransformerEncoderConfig,
    TinyTransformerEncoderForMaskedLM,
)
from hf_tiny_transformer.attention import MultiHeadAttention, apply_rotary, eager_attention_forward
from hf_tiny_transformer.layers import GatedMLP, sinusoidal_positions
from hf_tiny_transformer.masks import causal_mask
from pretrain.cli import parse
from pretrain.objectives.masking import REPLACED_BY_MASK, REPLACED_BY_RANDOM

HEAD_DIM = 64
SCORES = (112.0, 96.0)  # of the classic illustrated explanation: q1 . k1 and q1 . k2
STUDENT = ("I", "am", "a", "student")
BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def all_numbers() -> dict[str, str]:
    """Return the texts of the templates by name; they need no trained model and nothing random."""
    return {**one_query(), **several_heads(), **positions(), **the_encoder(), **the_mask(), **bert()}


def one_query() -> dict[str, str]:
    """Compute our attention of one query and two keys with scores 112 and 96."""
    weights, mixed = attend_to(SCORES)
    undivided = torch.tensor(SCORES).softmax(-1)
    return {
        "score_1": f"{SCORES[0]:.0f}",
        "score_2": f"{SCORES[1]:.0f}",
        "head_dim": str(HEAD_DIM),
        "divisor": f"{HEAD_DIM**0.5:.0f}",
        "scaled_1": f"{SCORES[0] / HEAD_DIM**0.5:.0f}",
        "scaled_2": f"{SCORES[1] / HEAD_DIM**0.5:.0f}",
        "weight_1": f"{weights[0]:.2f}",
        "weight_2": f"{weights[1]:.2f}",
        "mixed_1": f"{mixed[0]:.2f}",
        "mixed_2": f"{mixed[1]:.2f}",
        "undivided_2": f"{undivided[1]:.7f}",
    }


def attend_to(scores: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (S,) and output (HEAD_DIM,) of a query whose products with S keys are `scores`.

    The values are the first S unit vectors, so that the output shows how much of each is in it.
    """
    query = torch.ones(1, 1, 1, HEAD_DIM)
    keys = torch.stack([query[0, 0, 0] * score / HEAD_DIM for score in scores])[None, None]
    values = torch.eye(len(scores), HEAD_DIM)[None, None]
    mixed, weights = eager_attention_forward(nn.Module().eval(), query, keys, values, None, scaling=HEAD_DIM**-0.5)
    return weights[0, 0, 0], mixed[0, 0, 0]


def several_heads() -> dict[str, str]:
    """Count the parameters of the original Transformer's attention: eight heads have as many as one."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 1, "intermediate_size": 2048}
    eight, one = (
        MultiHeadAttention(TinyTransformerEncoderConfig(**sizes, num_attention_heads=heads), 0) for heads in (8, 1)
    )
    assert count(eight) == count(one)
    return {
        "width": "512",
        "heads": "8",
        "head_width": str(eight.head_dim),
        "attention_parameters": f"{count(eight):,}",
    }


def positions() -> dict[str, str]:
    """Compute the sinusoidal position of the second word, and scores of rotary positions by distance."""
    second = sinusoidal_positions(torch.tensor([[1]]), 4, torch.float)[0, 0]
    numbers = {f"sine_{i}": f"{value:.2f}" for i, value in enumerate(second.tolist())}
    for name, (query, key) in {"near": (3, 1), "far": (103, 101), "other": (3, 0)}.items():
        numbers[f"rotary_{name}"] = f"{rotary_score(query, key):.2f}".replace("-", "\N{MINUS SIGN}")
    return numbers


def rotary_score(query: int, key: int) -> float:
    """Return the product of two pairs (1, 0) at these positions, rotated by one radian per position."""
    pair = torch.tensor([[[[1.0, 0.0]]]])
    rotated = []
    for position in (query, key):
        angle = torch.full((1, 1, 2), float(position))
        rotated.append(apply_rotary(pair, pair, angle.cos(), angle.sin())[0])
    return float((rotated[0] * rotated[1]).sum())


def the_encoder() -> dict[str, str]:
    """Describe the model that `make pretrain` trains."""
    parts = encoder_parts()
    _, recipe = parse(["--recipe", "sample", "--output", "unused"])
    return {
        "sample_layers": str(recipe.model["num_hidden_layers"]),
        "sample_heads": str(recipe.model["num_attention_heads"]),
        "sample_width": str(recipe.model["hidden_size"]),
        "sample_parameters": f"{sum(parts.values()):,}",
        "embedding_share": f"{100 * parts['word embeddings'] / sum(parts.values()):.0f}",
    }


def encoder_parts() -> dict[str, int]:
    """Return the number of parameters in each part of the sample recipe's model."""
    _, recipe = parse(["--recipe", "sample", "--output", "unused"])
    with torch.device("meta"):
        model = TinyTransformerEncoderForMaskedLM(
            TinyTransformerEncoderConfig(vocab_size=recipe.vocab_size, **recipe.model)
        )
    parts = {"word embeddings": count(model.model.embed_tokens)}
    parts["attention"] = sum(count(part) for part in model.modules() if isinstance(part, MultiHeadAttention))
    parts["feed-forward"] = sum(count(part) for part in model.modules() if isinstance(part, GatedMLP))
    parts["norms and head"] = model.num_parameters() - sum(parts.values())
    return parts


def the_mask() -> dict[str, str]:
    """Compute the weights of a decoder with equal scores, which only the mask decides."""
    weights = masked_weights()
    rows = {f"mask_row_{i}": ", ".join(f"{w:.2f}" for w in row) for i, row in enumerate(weights.tolist())}
    return {**rows, "student": " ".join(STUDENT)}


def masked_weights() -> torch.Tensor:
    """Return the weights (4, 4) of "I am a student" under the causal mask, with equal scores."""
    equal = torch.zeros(1, 1, len(STUDENT), HEAD_DIM)
    config = TinyTransformerDecoderConfig(attn_implementation="eager")
    mask = causal_mask(config, equal[0], attention_mask=None)
    return eager_attention_forward(nn.Module().eval(), equal, equal, equal, mask, scaling=1.0)[1][0, 0]


def bert() -> dict[str, str]:
    """Count the parameters of BERT-base in our class, and describe how words are masked."""
    with torch.device("meta"):
        base = TinyTransformerBertModel(TinyTransformerBertConfig(vocab_size=30522, **BERT_BASE))
    percent = {"masked": REPLACED_BY_MASK, "random": REPLACED_BY_RANDOM}
    percent["kept"] = 1 - sum(percent.values())
    return {
        "bert_parameters": f"{base.num_parameters():,}",
        "bert_layers": str(BERT_BASE["num_hidden_layers"]),
        "bert_heads": str(BERT_BASE["num_attention_heads"]),
        "bert_width": str(BERT_BASE["hidden_size"]),
        **{f"{name}_percent": f"{100 * share:.0f}" for name, share in percent.items()},
    }


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
