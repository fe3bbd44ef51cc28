"""`attend --live`: a page that holds the model itself, and computes and draws its attention while the reader types."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import hf_tiny_transformer

from ..common.checkpoints import load_model, read_config, read_tokenizer, saved_class, usable_length
from ..common.errors import UserError
from ..common.pages import render_page
from ..configuration_trunk import FULL, SLIDING

FOLDER = Path(__file__).parent
SCRIPTS = (FOLDER / "live_model.js", FOLDER / "live.js")
MAX_PARAMETERS = 10_000_000  # 13 MB of page; each key stroke would take a second in a browser
MAX_TOKENS = 64  # the map of a longer text is not legible
FAMILIES = {f"tiny_transformer_{family}": family for family in ("encoder", "bert", "decoder")}
TASKS = {"MaskedLM": "masked", "PreTraining": "masked", "CausalLM": "causal", "SequenceClassification": "labels"}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")  # of live_model.js
FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # the others depend on the length of the text
TOKENIZER_PARTS = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
SENTENCE = "the acting is great and the story moved me to tears ."


def live_page(source: str | Path, *, text: str | None = None, fp32: bool = False) -> str:
    """Return a page with the weights (8-bit, or `fp32`), tokenizer and forward pass of a model.

    Args:
        source: Directory or Hub model.
        text: The sentence that is shown first.
        fp32: Keep the full precision of the weights.

    Raises:
        UserError: The page cannot run this model or its tokenizer.
    """
    config = read_config(source)
    if (family := FAMILIES.get(config.model_type)) is None:
        families = "Encoder, Bert and Decoder (convert a stock bert model with hf-tiny-transformer import)"
        raise _refused(source, f"model_type is {config.model_type}", families)
    saved = saved_class(source, config).__name__
    if (task := TASKS.get(saved.rpartition("For")[2])) is None:
        raise _refused(source, f"it is a {saved}", "language models and text classifiers")
    opened = getattr(hf_tiny_transformer, saved.replace("ForPreTraining", "ForMaskedLM"))
    model, tokenizer = load_model(source, opened, config), read_tokenizer(source, config)
    if (count := model.num_parameters()) > MAX_PARAMETERS:
        raise _refused(source, f"it has {count:,} parameters", f"at most {MAX_PARAMETERS:,}")
    if task == "masked" and tokenizer.mask_token_id is None:
        raise _refused(source, "its tokenizer has no mask_token", "masked language models with one")
    data = {
        "name": Path(source).resolve().name,
        "task": task,
        "text": text or SENTENCE,
        "bits": 32 if fp32 else 8,
        "room": min(MAX_TOKENS, usable_length(None, config, tokenizer)),
        "config": _shape(source, model, config, family, task),
        "tokenizer": tokenizer_settings(source, tokenizer),
        "tensors": {name: pack(tensor, fp32) for name, tensor in model.named_parameters()},
    }
    return render_page(FOLDER / "live.html", f"Live: {data['name']}", data, SCRIPTS)


def pack(tensor: torch.Tensor, fp32: bool) -> dict[str, Any]:
    """Return a tensor for JSON; a matrix, unless `fp32`, as int8 with one scale per row."""
    values = tensor.detach().numpy().astype("<f4")
    if fp32 or values.ndim != 2:
        return {"shape": values.shape, "data": _base64(values)}
    scales = (np.abs(values).max(axis=1) / 127).astype("<f4")
    rounded = np.rint(values / np.maximum(scales, 1e-30)[:, None]).astype(np.int8)
    return {"shape": values.shape, "data": _base64(rounded), "scales": _base64(scales)}


def tokenizer_settings(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the parts of a WordPiece tokenizer that live_model.js needs.

    Raises:
        UserError: Some part of the tokenizer is not implemented there.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {} if backend is None else json.loads(backend.to_str())
    for part, needed in TOKENIZER_PARTS.items():
        if (kind := (parts.get(part) or {}).get("type")) != needed:
            raise _refused(source, f"the {part} of its tokenizer is {kind}", needed)
    for token in parts["added_tokens"]:
        if token["normalized"] or token["single_word"]:
            raise _refused(source, f"its tokenizer normalizes the added token {token['content']}", "plain added tokens")
    model, normalizer = parts["model"], parts["normalizer"]
    plain, whole = (tokenizer(model["unk_token"], add_special_tokens=flag)["input_ids"] for flag in (False, True))
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return {
        "pieces": tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
        "added": [token["content"] for token in parts["added_tokens"]],
        "special": tokenizer.all_special_ids,
        "mask": tokenizer.mask_token_id,
        "unknown": tokenizer.convert_tokens_to_ids(model["unk_token"]),
        "prefix": model["continuing_subword_prefix"],
        "longest": model["max_input_chars_per_word"],
        "before": whole[:start],
        "after": whole[start + len(plain) :],
        "clean": normalizer["clean_text"],
        "spaceCjk": normalizer["handle_chinese_chars"],
        "lowercase": normalizer["lowercase"],
        "stripAccents": normalizer["lowercase" if normalizer["strip_accents"] is None else "strip_accents"],
    }


def _shape(
    source: str | Path, model: PreTrainedModel, config: PreTrainedConfig, family: str, task: str
) -> dict[str, Any]:
    """Return the config of the forward pass."""
    if config.hidden_act not in ACTIVATIONS:
        raise _refused(source, f"hidden_act is {config.hidden_act}", ", ".join(ACTIVATIONS))
    if SLIDING in (getattr(config, "layer_types", None) or ()):
        raise _refused(source, "it has layers with windows", f"layer_types of {FULL} alone")
    rotary = model.model.rotary_emb[FULL] if hasattr(model.model, "rotary_emb") else None
    if rotary is not None and rotary.rope_type not in FIXED_ROPE:
        raise _refused(source, f"rope_type is {rotary.rope_type}", ", ".join(FIXED_ROPE))
    labels = [name for _, name in sorted((config.id2label or {}).items())]
    if task == "labels" and (len(labels) < 2 or config.problem_type == "regression"):
        raise _refused(source, "it predicts a number", "classifiers of two or more labels")
    return {
        "family": family,
        "width": config.hidden_size,
        "inner": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "act": config.hidden_act,
        "eps": config.layer_norm_eps if family == "bert" else config.norm_eps,
        "causal": family == "decoder",
        "positionKind": "learned" if family == "bert" else config.position_embedding_type,
        "inverse": None if rotary is None else rotary.inv_freq.tolist(),
        "scale": None if rotary is None else rotary.attention_scaling,
        "pooling": {"bert": "pooler", "decoder": "last"}.get(family) or config.classifier_pooling,
        "several": config.problem_type == "multi_label_classification",
        "labels": labels if task == "labels" else None,
    }


def _base64(values: np.ndarray) -> str:
    return b64encode(values.tobytes()).decode()


def _refused(source: str | Path, fact: str, possible: str) -> UserError:
    return UserError(f"--model {source}: {fact}; a live page supports {possible}")
