"""Protects the use of flash attention. Its kernels need an accelerator; here plain torch replaces them.

All of transformers' own code runs: removal of padding, packed documents, causality. Results must equal those of sdpa.
"""

from collections.abc import Callable

import pytest
import torch
from families import (
    FAMILIES,
    LANGUAGE_MODELS,
    assert_close,
    batch,
    every_class,
    every_family,
    gradients,
    language_model,
    model_class,
    output_ids,
    pack,
    pad,
    real,
    tiny_config,
    tiny_model,
    two_documents,
)
from transformers import PreTrainedModel, modeling_flash_attention_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLASH = "flash_attention_2"


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """Compute what the kernel computes, on (B, T, H, D); a causal mask is aligned to the last key."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
    if causal:
        offset = k.shape[1] - q.shape[1]
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1 + offset), float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """Compute the same for sequences in one row, (T, H, D), with boundaries `cu_seqlens`."""
    assert cu_seqlens_q[-1] == q.shape[0] and cu_seqlens_k[-1] == k.shape[0] == v.shape[0]
    assert len(cu_seqlens_q) == len(cu_seqlens_k)
    assert max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k >= cu_seqlens_k.diff().max()
    pieces = zip(
        q.tensor_split(cu_seqlens_q[1:-1].tolist()),
        k.tensor_split(cu_seqlens_k[1:-1].tolist()),
        v.tensor_split(cu_seqlens_k[1:-1].tolist()),
        strict=True,
    )
    return torch.cat(
        [flash_attn_func(*(part[None] for part in piece), dropout_p, softmax_scale, causal)[0] for piece in pieces]
    )


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """Replace the kernels, and return the arguments of all their calls."""
    functions = (
        flash_attn_func,
        flash_attn_varlen_func,
        None,
        modeling_flash_attention_utils._pad_input,
        modeling_flash_attention_utils._unpad_input,
    )
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    route, seen = ALL_ATTENTION_FUNCTIONS[FLASH], []

    def watch(module, query, key, value, attention_mask, **kwargs):
        seen.append({"causal": module.is_causal, "cross": query.shape[2] != key.shape[2], "mask": attention_mask})
        seen[-1] |= {"position_ids": kwargs.get("position_ids"), "dropout": kwargs["dropout"]}
        return route(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, watch)
    return seen


def on_flash(model: PreTrainedModel, compute: Callable):
    """Set the backend by its internal name: transformers rejects it without the package."""
    model.config._attn_implementation_internal = FLASH
    try:
        return compute()
    finally:
        model.config._attn_implementation_internal = "sdpa"


@every_class
def test_flash_attention_is_declared(family: str, task: str):
    """The error names the missing package, not a missing feature of the model."""
    assert model_class(family, task)._supports_flash_attn
    with pytest.raises(ImportError, match=r"(?i)flash"):
        model_class(family, task)(tiny_config(family, attn_implementation=FLASH))


@every_family
def test_self_attention_receives_positions_and_cross_attention_does_not(family: str, calls: list[dict]):
    """And no mask is passed if there is no padding."""
    model, inputs = tiny_model(family), batch(family, padded=False)
    with torch.no_grad():
        on_flash(model, lambda: model(**inputs))
    selfs = [call for call in calls if not call["cross"]]
    crosses = [call for call in calls if call["cross"]]
    assert len(selfs) == (4 if family == "Seq2Seq" else 2)
    assert [call["causal"] for call in selfs] == {
        "Bert": [False] * 2,
        "Encoder": [False] * 2,
        "Decoder": [True] * 2,
        "Seq2Seq": [False] * 2 + [True] * 2,
    }[family]
    for call in selfs:
        assert call["position_ids"].shape[-1] in (ids.shape[1] for ids in inputs.values())
    assert len(crosses) == (2 if family == "Seq2Seq" else 0)
    for call in crosses:
        assert call["position_ids"] is None and not call["causal"]
    assert all(call["mask"] is None and call["dropout"] == 0.0 for call in calls)


@every_family
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_flash_computes_what_sdpa_computes(family: str, padding: str, calls: list[dict]):
    """Logits and gradients; both sides of a Seq2Seq are padded."""
    model = language_model(family).train()
    inputs = batch(family, padded=False) if padding == "none" else pad(two_documents(family), padding)
    inputs["labels"] = output_ids(inputs).masked_fill(~real(inputs), -100)
    expected, expected_gradients = model(**inputs).logits, gradients(model, **inputs)
    got, got_gradients = on_flash(model, lambda: (model(**inputs).logits, gradients(model, **inputs)))
    assert calls
    assert_close(got[real(inputs)], expected[real(inputs)])
    assert_close(got_gradients, expected_gradients)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Seq2Seq"])
def test_a_packed_row_is_packed_under_flash(family: str, calls: list[dict]):
    """There is no mask: the boundaries are read from the positions."""
    model, inputs = tiny_model(family), pack(two_documents(family))
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        got = on_flash(model, lambda: model(**inputs).last_hidden_state)
    assert all(call["mask"] is None and torch.equal(call["position_ids"], inputs["position_ids"]) for call in calls)
    assert_close(got, expected)


@every_family
def test_packing_that_flash_ignores_is_rejected(family: str, calls: list[dict]):
    """Several packed rows, and for a Seq2Seq even one: transformers would ignore the boundaries."""
    model, row = tiny_model(family), pack(two_documents(family))
    rows = {name: torch.cat((value, value)) for name, value in row.items()}
    with pytest.raises(ValueError, match="flatten the batch"):
        on_flash(model, lambda: model(**rows))
    if family == "Seq2Seq":
        with pytest.raises(ValueError, match="cannot pair"):
            on_flash(model, lambda: model(**row))


@pytest.mark.parametrize(("family", "side"), [("Decoder", "left"), ("Seq2Seq", "left"), ("Seq2Seq", "right")])
def test_flash_generates_what_sdpa_generates(family: str, side: str, calls: list[dict]):
    """With a cache, and padding in the prompt or source."""
    model = language_model(family, tie_word_embeddings=False)
    inputs = {name: value for name, value in pad(two_documents(family), side).items() if "decoder" not in name}
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    got = on_flash(model, lambda: model.generate(**inputs, max_new_tokens=6, do_sample=False))
    assert calls and torch.equal(got, expected)
    assert len(set(got[:, -6:].flatten().tolist())) > 3, f"a repetition of one token tests little: {got.tolist()}"


@every_family
def test_dropout_reaches_the_kernel_while_training(family: str, calls: list[dict]):
    name = "attention_probs_dropout_prob" if family == "Bert" else "attention_dropout"
    model = model_class(family, LANGUAGE_MODELS[family])(tiny_config(family, **{name: 0.25})).train()
    on_flash(model, lambda: model(**batch(family)))
    assert {call["dropout"] for call in calls} == {0.25}
