"""Protects the map between stock ModernBERT and our families, with windows: functions, gradients, bytes, errors."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from commands import fails, run
from families import VOCAB, WINDOWS, assert_close, model_class, tiny_config, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import ModernBertConfig, ModernBertDecoderConfig, PreTrainedConfig, PreTrainedModel

import hf_tiny_transformer as ours
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.convert.modernbert import stock_weights
from hf_tiny_transformer.convert.stock import config_from_stock, load_stock, stock_architectures, to_stock

CONFIGS = {"ModernBert": ModernBertConfig, "ModernBertDecoder": ModernBertDecoderConfig}
KNOWN = {name: known for config in CONFIGS.values() for name, known in stock_architectures(config).items()}
LENGTH = 40
LANGUAGE_MODELS = ["ModernBertForMaskedLM", "ModernBertDecoderForCausalLM"]


def stock_config(architecture: str, **overrides) -> PreTrainedConfig:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "initializer_range": 0.2,
        **{"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
    }
    return CONFIGS[architecture.partition("For")[0].removesuffix("Model")](**{**shape, **WINDOWS, **overrides})


def stock_model(architecture: str, **overrides) -> PreTrainedModel:
    """Build a stock model with values of its own in every weight, except for padding, which stock never trains."""
    model = getattr(transformers, architecture)(stock_config(architecture, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(architecture: str) -> dict[str, torch.Tensor]:
    """Build texts longer than the window, one of them padded, with labels."""
    shape = (2, 3, LENGTH) if "MultipleChoice" in architecture else (2, LENGTH)
    ids, mask = torch.randint(1, VOCAB, shape), torch.ones(shape, dtype=torch.long)
    mask[1, ..., 27:] = 0
    labels = {
        "ForMaskedLM": {"labels": torch.where(torch.rand(shape) < 0.5, ids, -100)},
        "ForCausalLM": {"labels": ids.masked_fill(mask == 0, -100)},
        "ForTokenClassification": {"labels": ids % 2},
        "ForSequenceClassification": {"labels": torch.tensor([0, 1])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([33, 2])},
        "ForMultipleChoice": {"labels": torch.tensor([2, 0])},
    }
    # stock's Decoder classifier finds the last token of a text by the pad id
    ids = ids * mask if "DecoderForSequence" in architecture else ids
    return {"input_ids": ids, "attention_mask": mask, **labels.get("For" + architecture.partition("For")[2], {})}


def assert_same_files(first: Path, second: Path) -> None:
    tensors, others = (load_file(place / "model.safetensors") for place in (first, second))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), others[name].view(torch.uint8)), name


@pytest.mark.parametrize("architecture", list(KNOWN))
def test_every_class_is_imported_exactly(architecture: str, tmp_path: Path):
    """Hidden states, outputs, loss and gradients of texts longer than the window; the export has the same bytes."""
    stock = stock_model(architecture, **{"classifier_bias": True} if "DecoderForSequence" in architecture else {})
    if "DecoderForSequence" in architecture:
        torch.nn.init.zeros_(stock.head.dense.bias)  # ours has no such bias
    stock.save_pretrained(tmp_path / "stock")
    assert run("import", "--from", tmp_path / "stock", "--output", tmp_path / "mine") == 0
    mine = KNOWN[architecture].from_pretrained(tmp_path / "mine")
    assert mine.config.layer_types == WINDOWS["layer_types"]
    inputs = batch(architecture)
    expected, got = stock(**inputs, output_hidden_states=True), mine(**inputs, output_hidden_states=True)
    for state, reference in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert_close(state, reference)
    assert got.keys() - {"past_key_values"} == expected.keys() - {"past_key_values"}
    for key in got.keys() - {"hidden_states", "past_key_values"}:
        assert_close(got[key], expected[key])
    for outputs in (got, expected):
        (outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().mean()).backward()
    mapped = stock_weights(mine, {name: p.grad for name, p in mine.named_parameters(remove_duplicate=False)})
    for name, parameter in stock.named_parameters():
        if name != "head.dense.bias":
            assert_close(mapped[name], parameter.grad)
    assert run("export", "--format", "stock", "--model", tmp_path / "mine", "--output", tmp_path / "back") == 0
    assert_same_files(tmp_path / "stock", tmp_path / "back")


def test_windows_matter():
    """Otherwise the comparisons above would show nothing."""
    wide, narrow = stock_model("ModernBertModel", local_attention=128), stock_model("ModernBertModel")
    narrow.load_state_dict(wide.state_dict())
    ids = torch.randint(1, VOCAB, (1, LENGTH))
    with torch.no_grad():
        assert (wide(ids).last_hidden_state - narrow(ids).last_hidden_state).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_ours_goes_there_and_back(architecture: str, tmp_path: Path):
    """In half precision and with untied embeddings; the config returns too."""
    family = "Decoder" if "Decoder" in architecture else "Encoder"
    settings = WINDOWS | {"tie_word_embeddings": False, "local_attention": 9}
    model = KNOWN[architecture](
        tiny_config(family, bos_token_id=2, **settings) if family == "Decoder" else tiny_config(family, **settings)
    )
    model.to(torch.bfloat16).save_pretrained(tmp_path / "mine")
    assert run("export", "--format", "stock", "--model", tmp_path / "mine", "--output", tmp_path / "stock") == 0
    exported = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert (
        exported["layer_types"] == WINDOWS["layer_types"] and exported["rope_parameters"] == WINDOWS["rope_parameters"]
    )
    assert (exported["local_attention"], exported["global_attn_every_n_layers"]) == (9, 2)
    assert (exported["global_rope_theta"], exported["local_rope_theta"]) == (160_000.0, 100.0)
    assert run("import", "--from", tmp_path / "stock", "--output", tmp_path / "back") == 0
    assert_same_files(tmp_path / "mine", tmp_path / "back")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("mine", "back")]
    assert configs[0] == configs[1]


def test_decoders_generate_the_same_text(tmp_path: Path):
    """Beyond the window, from left-padded prompts with a cache, and token by token."""
    stock = stock_model("ModernBertDecoderForCausalLM", tie_word_embeddings=False)
    stock.save_pretrained(tmp_path)
    mine, inputs = load_stock(tmp_path, ours.TinyTransformerDecoderForCausalLM), batch("")
    prompt = {name: inputs[name].roll(13, dims=1)[:, 10:30] for name in inputs}
    assert prompt["attention_mask"].tolist()[1][:3] == [0] * 3
    settings = {"max_new_tokens": 20, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    got, reference = mine.generate(**prompt, **settings), stock.generate(**prompt, **settings)
    assert torch.equal(got.sequences, reference.sequences)
    assert_close(torch.stack(got.logits), torch.stack(reference.logits))
    assert len(set(got.sequences[:, 20:].flatten().tolist())) > 4  # not a repetition of one token


def test_a_packed_row_of_a_decoder_is_what_stock_makes_of_it(tmp_path: Path):
    stock = stock_model("ModernBertDecoderForCausalLM")
    stock.save_pretrained(tmp_path)
    mine = load_stock(tmp_path, ours.TinyTransformerDecoderForCausalLM)
    row = {"input_ids": torch.randint(1, VOCAB, (1, LENGTH)), "use_cache": False}
    row["position_ids"] = torch.cat((torch.arange(23), torch.arange(17)))[None]
    assert_close(mine(**row).logits, stock(**row).logits)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_configs_as_they_are_on_the_hub(kind: str):
    """Those of ModernBERT, Ettin and mmBERT give the pattern by an integer, and the bases as two fields."""
    written = {"num_hidden_layers": 7, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}
    written |= {"local_rope_theta": 10000.0, "local_attention": 128, "position_embedding_type": "sans_pos"}
    written |= {"sliding_window": 40} if kind == "ModernBertDecoder" else {}
    mine = config_from_stock(CONFIGS[kind].from_dict(written))
    full, local = "full_attention", "sliding_attention"
    assert mine.layer_types == [full, local, local, full, local, local, full]
    assert [mine.rope_parameters[name]["rope_theta"] for name in (full, local)] == [160_000.0, 10_000.0]
    assert mine.sliding_window == (40 if kind == "ModernBertDecoder" else 64)  # the value that stock's forward reads


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm_bias", True),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("decoder_bias", False),
        ("classifier_bias", True),
        ("classifier_activation", "relu"),
        ("hidden_activation", "no_such"),
    ],
)
def test_inexpressible_settings_are_refused_by_name(
    architecture: str, field: str, value: object, tmp_path: Path, capsys
):
    stock = stock_model(architecture, **{field: value} if field != "hidden_activation" else {})
    stock.save_pretrained(tmp_path / "stock")
    if field == "hidden_activation":
        config = json.loads((tmp_path / "stock" / "config.json").read_text())
        config |= {field: value, "classifier_activation": value}
        (tmp_path / "stock" / "config.json").write_text(json.dumps(config))
    error = fails(capsys, "import", "--from", tmp_path / "stock", "--output", tmp_path / "mine")
    assert str(tmp_path / "stock") in error and (field if field != "hidden_activation" else "hidden_act") in error
    assert not (tmp_path / "mine").exists()


def test_other_files_are_refused(tmp_path: Path, capsys):
    stock_model("ModernBertForMaskedLM").save_pretrained(tmp_path / "stock")
    tensors = load_file(tmp_path / "stock" / "model.safetensors")
    save_file(tensors | {"decoder.weight": torch.zeros(VOCAB, 32)}, tmp_path / "stock" / "model.safetensors")
    with pytest.raises(UserError, match="tie_word_embeddings is true"):
        load_stock(tmp_path / "stock", ours.TinyTransformerEncoderForMaskedLM)
    config = json.loads((tmp_path / "stock" / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (tmp_path / "stock" / "config.json").write_text(json.dumps(config))
    error = fails(capsys, "import", "--from", tmp_path / "stock", "--output", tmp_path / "mine")
    assert "architectures is ['BertModel']; expected one of ModernBertModel" in error


@pytest.mark.parametrize("family", ["Encoder", "Decoder"])
def test_onnx_export_of_windows(family: str, tmp_path: Path, capsys):
    """An Encoder's graph computes the same (the command compares); a Decoder's cache has two lengths: refused."""
    pytest.importorskip("onnxruntime")
    task = "ForMaskedLM" if family == "Encoder" else "ForCausalLM"
    model_class(family, task)(tiny_config(family, **WINDOWS)).save_pretrained(tmp_path / "mine")
    tiny_tokenizer().save_pretrained(tmp_path / "mine")
    command = ("export", "--format", "onnx", "--model", tmp_path / "mine", "--output", tmp_path / "onnx")
    if family == "Encoder":
        assert run(*command) == 0
    else:
        assert "sliding_attention" in fails(capsys, *command)


def test_to_stock_keeps_an_irregular_pattern():
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    stock = to_stock(ours.TinyTransformerEncoderModel(tiny_config("Encoder", **WINDOWS | {"layer_types": types})))
    assert stock.config.layer_types == types and not hasattr(stock.config, "global_attn_every_n_layers")
