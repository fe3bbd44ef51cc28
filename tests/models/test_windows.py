"""Protects sliding windows: packing, caches and every attention backend see the same tokens."""

from itertools import pairwise

import pytest
import torch
from families import (
    BACKENDS,
    WINDOWS,
    assert_close,
    gradients,
    language_model,
    other_tokens,
    pack,
    pad,
    random_ids,
    real,
    tiny_config,
    tiny_model,
)
from transformers import PreTrainedModel, modeling_flash_attention_utils
from transformers.cache_utils import DynamicCache

import hf_tiny_transformer as ours
from pretrain import varlen

both = pytest.mark.parametrize("family", ["Encoder", "Decoder"])
LENGTH = 40


def two_long_documents() -> list[dict[str, torch.Tensor]]:
    """Both are longer than the window."""
    return [{"input_ids": random_ids(1, length)} for length in (23, 17)]


def visible(query: int, family: str) -> list[int]:
    """Return the positions that a token sees with local_attention 8."""
    return list(range(max(0, query - 3), query + 1) if family == "Decoder" else range(max(0, query - 4), query + 5))


@both
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_a_token_sees_its_window(family: str, backend: str):
    """One layer: another token changes exactly the states whose window holds it."""
    settings = WINDOWS | {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
    model, ids = tiny_model(family, attn_implementation=backend, **settings), random_ids(1, LENGTH)
    changed = ids.clone()
    changed[0, 20] = other_tokens(ids[0, 20])
    with torch.no_grad():
        difference = (model(ids).last_hidden_state - model(changed).last_hidden_state)[0].abs().amax(-1)
    assert [i for i in range(LENGTH) if difference[i] > 1e-5] == [i for i in range(LENGTH) if 20 in visible(i, family)]


@both
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_packed_documents_give_the_states_of_padded_and_single_ones(family: str, backend: str):
    model, documents = tiny_model(family, attn_implementation=backend, **WINDOWS), two_long_documents()
    with torch.no_grad():
        packed = model(**pack(documents)).last_hidden_state[0]
        padded = model(**pad(documents)).last_hidden_state[real(pad(documents))]
        alone = torch.cat([model(**document).last_hidden_state[0] for document in documents])
        other = pack(two_long_documents()[::-1])
        rows = {name: torch.cat((value, other[name])) for name, value in pack(documents).items()}
        assert_close(model(**rows).last_hidden_state[0], packed)
    assert_close(packed, padded)
    assert_close(packed, alone)


@both
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_packed_and_single_documents_have_the_same_gradients(family: str, backend: str):
    model, documents = language_model(family, attn_implementation=backend, **WINDOWS).train(), two_long_documents()
    for document in documents:
        document["labels"] = document["input_ids"].clone()
        document["labels"][:, 0] = -100  # in a row, the token before it is of another document
    alone = [gradients(model, **document, num_items_in_batch=38) for document in documents]
    row = pack([{"input_ids": document["input_ids"]} for document in documents])
    row["labels"] = torch.cat([document["labels"] for document in documents], dim=1)
    packed = gradients(model, **row, num_items_in_batch=38)
    assert_close(packed, {name: alone[0][name] + alone[1][name] for name in packed})


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_a_cache_changes_nothing(backend: str):
    """Token by token and in pieces, beyond the window; sliding layers forget what no later token sees."""
    model, ids = tiny_model("Decoder", attn_implementation=backend, **WINDOWS), random_ids(2, LENGTH)
    with torch.no_grad():
        expected = model(ids, use_cache=False).last_hidden_state
        for bounds in ([*range(LENGTH + 1)], [0, 3, 4, 17, 30, LENGTH], [0, LENGTH - 1, LENGTH]):
            cache, got = None, []
            for first, last in pairwise(bounds):
                outputs = model(ids[:, first:last], past_key_values=cache, use_cache=True)
                cache = outputs.past_key_values
                got.append(outputs.last_hidden_state)
            assert_close(torch.cat(got, dim=1), expected)
            assert isinstance(cache, DynamicCache)
            assert [layer.keys.shape[2] for layer in cache.layers] == [LENGTH, 3] * 2


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_generation_is_a_loop_without_a_cache(settings: dict):
    model = language_model("Decoder", tie_word_embeddings=False, **WINDOWS | {"initializer_range": 0.4})
    documents = two_long_documents()
    inputs = pad(documents, side="left")
    texts = model.generate(**inputs, max_new_tokens=12, do_sample=False, **settings)[:, -12:]
    for document, text in zip(documents, texts, strict=True):
        ids = document["input_ids"]
        for _ in range(12):
            ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(text, ids[0, -12:])
    assert len(set(texts.flatten().tolist())) > 4  # not a repetition of one token


def windowed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: tuple[int, int]
) -> torch.Tensor:
    """Compute what flash kernels do on (T, H, D): a query sees `window` keys on its left and right."""
    distance = torch.arange(len(key)) - torch.arange(len(query))[:, None] - (len(key) - len(query))
    left, right = (LENGTH if side < 0 else side for side in window)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    scores = scores.masked_fill((distance < -left) | (distance > right), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def in_documents(query, key, value, bounds: list[int], scale: float, window: tuple[int, int]) -> torch.Tensor:
    return torch.cat([windowed_attention(query[a:b], key[a:b], value[a:b], scale, window) for a, b in pairwise(bounds)])


@both
def test_the_varlen_kernel_gets_the_window(family: str, monkeypatch: pytest.MonkeyPatch):
    """Plain torch replaces the kernel, which needs a GPU."""

    def kernel(query, key, value, bounds, _, longest, __, *, scale, window_size):
        return in_documents(query, key, value, bounds.tolist(), scale, window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    model, row = tiny_model(family, **WINDOWS), pack(two_long_documents())
    with torch.no_grad():
        expected = model(**row, use_cache=False).last_hidden_state
        model.set_attn_implementation(varlen.NAME)
        bounds = torch.tensor([0, 23, LENGTH], dtype=torch.int32)
        got = model(**row, cu_seq_lens_q=bounds, use_cache=False)
    assert_close(got.last_hidden_state, expected)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    window = (window_size[0], 0) if causal else window_size
    return torch.stack([windowed_attention(*row, softmax_scale, window) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, softmax_scale=None, causal=False, window_size=(-1, -1)
):
    window = (window_size[0], 0) if causal else window_size
    return in_documents(q, k, v, cu_seqlens_q.tolist(), softmax_scale, window)


@both
@pytest.mark.parametrize("arrange", [pack, pad, lambda documents: documents[0]])
def test_flash_attention_gets_the_window(family: str, arrange, monkeypatch: pytest.MonkeyPatch):
    """All of transformers' own code runs; plain torch replaces the kernels."""
    utils = modeling_flash_attention_utils
    functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *_, **__: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    model, inputs = tiny_model(family, **WINDOWS), arrange(two_long_documents())
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).last_hidden_state
        model.config._attn_implementation_internal = "flash_attention_2"
        got = model(**inputs, use_cache=False).last_hidden_state
    kept = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    assert_close(got[kept], expected[kept])


@both
def test_every_buffer_survives_saving(family: str, tmp_path):
    """One rotary table per layer type, rebuilt after loading on the meta device; the settings are kept."""
    model, ids = tiny_model(family, **WINDOWS), random_ids(1, LENGTH)
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path)
    assert all(getattr(opened.config, name) == value for name, value in WINDOWS.items())
    assert {tuple(table.tolist()) for name, table in opened.named_buffers() if name.endswith(".inv_freq")} == {
        tuple(table.tolist()) for name, table in model.named_buffers() if name.endswith(".inv_freq")
    }
    assert len({tuple(table.tolist()) for _, table in opened.named_buffers()}) == 2
    with torch.no_grad():
        assert torch.equal(opened(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_windows_work_with_other_positions(positions: str):
    settings = {name: value for name, value in WINDOWS.items() if name != "rope_parameters"}
    model = tiny_model("Encoder", position_embedding_type=positions, **settings)
    documents = two_long_documents()
    with torch.no_grad():
        alone = torch.cat([model(**document).last_hidden_state[0] for document in documents])
        assert_close(model(**pack(documents)).last_hidden_state[0], alone)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("Encoder", {"layer_types": ["full_attention"]}, "layer_types"),
        ("Encoder", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ("Decoder", {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 3}, "at least 4"),
        ("Decoder", {"local_attention": 0}, "local_attention"),
        (
            "Encoder",
            {"rope_parameters": {"full_attention": {}}},
            "'sliding_attention' is missing",
        ),
        ("Seq2Seq", {"layer_types": ["full_attention", "sliding_attention"]}, "Seq2Seq supports only 'full_attention'"),
    ],
)
def test_unfit_settings_are_refused(family: str, fields: dict, message: str):
    with pytest.raises(Exception, match=message):
        tiny_config(family, **fields)


def test_an_old_checkpoint_has_full_attention_everywhere():
    """Its config.json has neither of the fields."""
    old = {k: v for k, v in tiny_config("Encoder").to_dict().items() if k not in ("layer_types", "local_attention")}
    config = ours.TinyTransformerEncoderConfig.from_dict(old)
    assert config.to_dict() == tiny_config("Encoder").to_dict() and config.sliding_window is None
    model: PreTrainedModel = ours.TinyTransformerEncoderModel(config)
    assert {layer.attention.sliding_window for layer in model.layers} == {None}
