"""Protects `export --format stock`: what it writes computes the same where this package is not, or it refuses."""

import json
from pathlib import Path

import pytest
import torch
from commands import fails, run
from families import TASKS, batch, model_class, tiny_config, tiny_model, tiny_tokenizer
from outsider import run_outside
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

import hf_tiny_transformer  # noqa: F401  (registers the families)

STOCK_TYPES = {"Bert": "bert", "Encoder": "modernbert", "Decoder": "modernbert-decoder"}
PLAIN = [(family, task, {}) for family in STOCK_TYPES for task in TASKS[family]]
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
THREE = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
UNUSUAL = [
    ("Encoder", "ForMaskedLM", {"rope_parameters": YARN, "hidden_act": "silu", "tie_word_embeddings": False}),
    ("Encoder", "ForSequenceClassification", {"classifier_pooling": "cls", **THREE}),
    ("Encoder", "ForSequenceClassification", {"num_labels": 1, "norm_eps": 1e-3, "cls_token_id": 2, "sep_token_id": 3}),
    ("Encoder", "ForTokenClassification", THREE),
    ("Encoder", "ForQuestionAnswering", THREE),
    ("Decoder", "ForCausalLM", {"rope_parameters": YARN, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}),
    ("Decoder", "ForSequenceClassification", {**THREE, "eos_token_id": [3, 5]}),
]
OPEN_ALL = """
import json, torch, transformers
from safetensors.torch import load_file
for directory in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    example = load_file(directory / "example.safetensors")
    expected = {name[9:]: example.pop(name) for name in list(example) if name.startswith("expected.")}
    name = json.loads((directory / "stock" / "config.json").read_text())["architectures"][0]
    config = transformers.AutoConfig.from_pretrained(directory / "stock")
    auto = "AutoModel" + (name.partition("For")[1] + name.partition("For")[2])
    for opened in (auto, "AutoModel"):
        model, loading = getattr(transformers, opened).from_pretrained(directory / "stock", output_loading_info=True)
        assert type(model).__module__.startswith("transformers.models.")
        if opened == auto:
            assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
            with torch.no_grad():
                outputs = model.eval()(**example)
            for key, tensor in expected.items():
                torch.testing.assert_close(outputs[key], tensor, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "stock")
    assert tokenizer("word7 word9")["input_ids"] == [2, 7, 9, 3]
    print(directory.name, type(config).model_type, name, config.num_labels)
"""


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Norms start at 1 and biases at 0, where a swapped pair would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def write_ours(directory: Path, family: str, task: str, **settings) -> PreTrainedModel:
    model = shaken(model_class(family, task)(tiny_config(family, **settings)))
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model


def example_for(model: PreTrainedModel, family: str, task: str) -> dict[str, torch.Tensor]:
    """A padded batch and what comes out of it; stock's decoder finds a text's end by the padding's id."""
    inputs = batch(family, task)
    inputs["input_ids"] = inputs["input_ids"] * inputs["attention_mask"]
    with torch.no_grad():
        outputs = model(**inputs)
    kept = {f"expected.{key}": value for key, value in outputs.items() if isinstance(value, torch.Tensor)}
    return inputs | {key: value.contiguous() for key, value in kept.items()}


def export(source: Path, output: Path) -> int:
    return run("export", "--format", "stock", "--model", source, "--output", output)


def test_every_head_opens_without_this_package_and_computes_the_same(tmp_path: Path, capsys):
    """All classes that stock has, and settings off the default; without our code and without trust_remote_code."""
    (tmp_path / "models").mkdir()
    cases = [*PLAIN, *UNUSUAL]
    for number, (family, task, settings) in enumerate(cases):
        directory = tmp_path / "models" / f"{number:02d}"
        model = write_ours(directory / "ours", family, task, **settings)
        save_file(example_for(model, family, task), directory / "example.safetensors")
        assert export(directory / "ours", directory / "stock") == 0
        assert not list((directory / "stock").glob("*.py"))
        assert "auto_map" not in json.loads((directory / "stock" / "config.json").read_text())
    opened = run_outside(OPEN_ALL, tmp_path / "models", cache=tmp_path).splitlines()
    for line, (family, task, settings) in zip(opened, cases, strict=True):
        model_type, architecture, labels = line.split()[1:]
        assert model_type == STOCK_TYPES[family]
        assert architecture == {"Bert": "Bert", "Encoder": "ModernBert", "Decoder": "ModernBertDecoder"}[family] + task
        assert int(labels) == (2 if task == "ForQuestionAnswering" else settings.get("num_labels", 2))


def test_half_precision_stays_what_it_is(tmp_path: Path):
    model = write_ours(tmp_path / "ours", "Encoder", "ForMaskedLM").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "stock") == 0
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "stock")
    assert stock.dtype == torch.bfloat16
    mine, theirs = model.get_input_embeddings().weight, stock.get_input_embeddings().weight
    assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))


def test_generation_settings_go_along(tmp_path: Path):
    model = write_ours(tmp_path / "ours", "Decoder", "ForCausalLM", eos_token_id=3)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "stock") == 0
    settings = json.loads((tmp_path / "stock" / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 7 and settings["eos_token_id"] == 3
    prompt = AutoTokenizer.from_pretrained(tmp_path / "stock")("word7 word9", return_tensors="pt")
    assert prompt["input_ids"].shape == (1, 4)


@pytest.mark.parametrize(
    ("family", "task", "settings", "message"),
    [
        ("Encoder", "ForMaskedLM", {"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
        ("Decoder", "ForCausalLM", {"position_embedding_type": "none"}, "position_embedding_type is 'none'"),
        ("Decoder", "ForSequenceClassification", {"pad_token_id": None}, "pad_token_id is null"),
        ("Seq2Seq", "ForConditionalGeneration", {}, "no stock class computes the same function"),
    ],
)
def test_what_stock_cannot_express_is_refused(family, task, settings, message, tmp_path: Path, capsys):
    tiny_model(family, task, **settings).save_pretrained(tmp_path / "ours")
    command = ("export", "--format", "stock", "--model", tmp_path / "ours", "--output", tmp_path / "stock")
    error = fails(capsys, *command)
    assert message in error and "ours" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_the_tokenizer_has_no_name_that_only_transformers_5_knows(tmp_path: Path):
    """Transformers 4.57 refuses the class TokenizersBackend, and a list of extra special tokens."""
    tiny_model("Encoder", "ForMaskedLM").save_pretrained(tmp_path / "ours")
    tiny_tokenizer().save_pretrained(tmp_path / "ours")
    assert run("export", "--model", tmp_path / "ours", "--format", "stock", "--output", tmp_path / "stock") == 0
    config = json.loads((tmp_path / "stock" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not config.keys() & {"backend", "extra_special_tokens"}
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("ours", "stock"))
    assert before("a b [MASK]") == after("a b [MASK]") and before.special_tokens_map == after.special_tokens_map
