"""Protects that a saved model opens without this package: the code of its family is saved with it."""

import json
import shutil
import types
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES, LANGUAGE_MODELS, language_model, model_class, tiny_model, tiny_tokenizer, training_batch
from outsider import run_outside
from safetensors.torch import save_file
from torch import nn

import hf_tiny_transformer as ours

OPEN_EVERYWHERE = """
import torch, transformers
from safetensors.torch import load_file
for family in pathlib.Path(sys.argv[1]).iterdir():
    auto_map = transformers.AutoConfig.from_pretrained(family, trust_remote_code=True).auto_map
    model_autos = [name for name in auto_map if name != "AutoConfig"]
    for name in model_autos:
        model = getattr(transformers, name).from_pretrained(family, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert type(model).__name__ == auto_map[name].split(".")[1]
        print(family.name, name, type(model).__name__)
    saved_by = auto_map["AutoModelForMaskedLM" if "AutoModelForMaskedLM" in auto_map else "AutoModelForPreTraining"]
    (name,) = [n for n in model_autos if auto_map[n] == saved_by and n != "AutoModelForPreTraining"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(family, trust_remote_code=True)
    assert tokenizer("word7 word9")["input_ids"] == [2, 7, 9, 3]
    example = load_file(family.parent.parent / "examples" / f"{family.name}.safetensors")
    expected = example.pop("logits")
    model, again = getattr(transformers, name).from_pretrained(family, trust_remote_code=True), family / "again"
    model.save_pretrained(again)  # copies the code again
    for opened in (model, getattr(transformers, name).from_pretrained(again, trust_remote_code=True)):
        with torch.no_grad():
            torch.testing.assert_close(opened.eval()(**example).logits, expected, atol=1e-5, rtol=1e-5)
    assert transformers.AutoModel.from_pretrained(again, trust_remote_code=True)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Under models/ a language model of each family with a tokenizer; under examples/ a batch and its logits."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("travel")
    (root / "examples").mkdir()
    for family in FAMILIES:
        model, inputs = language_model(family), training_batch(family)
        del inputs["labels"]
        model.save_pretrained(root / "models" / family)
        tiny_tokenizer().save_pretrained(root / "models" / family)
        with torch.no_grad():
            save_file({**inputs, "logits": model(**inputs).logits}, root / "examples" / f"{family}.safetensors")
    return root


def test_every_auto_class_opens_it_without_this_package(checkpoints: Path, tmp_path: Path):
    """Not only the class that was saved; with the same outputs; and again after another save."""
    shutil.copytree(checkpoints, tmp_path / "moved")
    opened = set(run_outside(OPEN_EVERYWHERE, tmp_path / "moved" / "models", cache=tmp_path).splitlines())
    assert opened == {
        f"{family} {auto_class} {name}"
        for family, config_class in FAMILIES.items()
        for auto_class, name in ours.FAMILIES[config_class].items()
    }


def test_an_image_classifier_opens_without_this_package(tmp_path: Path):
    config = ours.TinyTransformerEncoderImageConfig(hidden_size=32, num_attention_heads=2, intermediate_size=48)
    model = ours.TinyTransformerEncoderForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        save_file({"logits": model(torch.ones(1, 3, 8, 8)).logits}, tmp_path / "expected.safetensors")
    open_image_model = """
import torch, transformers
from safetensors.torch import load_file
directory = pathlib.Path(sys.argv[1])
model = transformers.AutoModelForImageClassification.from_pretrained(directory / "model", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    logits = model.eval()(torch.ones(1, 3, 8, 8)).logits
torch.testing.assert_close(logits, load_file(directory / "expected.safetensors")["logits"], atol=1e-5, rtol=1e-5)
print(type(transformers.AutoModel.from_pretrained(directory / "model", trust_remote_code=True)).__name__)
"""
    assert run_outside(open_image_model, tmp_path, cache=tmp_path).split() == ["TinyTransformerEncoderImageModel"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_files_of_the_family_are_copied_and_no_others(family: str, checkpoints: Path):
    directory, package = checkpoints / "models" / family, Path(ours.__file__).parent
    files = {file.name for file in directory.glob("*.py")}
    name = family.lower()
    shared = {"attention.py", "masks.py", "layers.py", "token_loss.py", "configuration_base.py"}
    assert files > shared | {f"modeling_{name}.py", f"configuration_{name}.py"}
    assert not files & {"__init__.py", "families.py"}
    assert all((directory / file).read_bytes() == (package / file).read_bytes() for file in files)
    auto_map = json.loads((directory / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == f"configuration_{name}.TinyTransformer{family}Config"
    assert "AutoTokenizer" not in auto_map


@pytest.mark.parametrize("family", list(FAMILIES))
def test_with_this_package_its_own_code_runs(family: str, checkpoints: Path, caplog):
    """Without a question or a warning, whatever `trust_remote_code` is."""
    directory = checkpoints / "models" / family
    auto = "AutoModelForSeq2SeqLM" if family == "Seq2Seq" else f"AutoModel{LANGUAGE_MODELS[family]}"
    for trust in (None, False, True):
        model = getattr(transformers, auto).from_pretrained(directory, trust_remote_code=trust)
        assert type(model) is model_class(family, LANGUAGE_MODELS[family])
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust)
        assert type(getattr(transformers, auto).from_config(config, trust_remote_code=trust)) is type(model)
    assert not caplog.records


def test_classes_outside_the_table(tmp_path: Path):
    """Half a Seq2Seq opens as the family; a subclass of a config defined elsewhere takes no code along."""
    tiny_model("Seq2Seq").encoder.save_pretrained(tmp_path / "half")
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "half")) is ours.TinyTransformerSeq2SeqModel

    class OwnConfig(ours.TinyTransformerEncoderConfig):
        model_type = "own"

    OwnConfig().save_pretrained(tmp_path / "own")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["config.json"]
    assert "auto_map" not in (tmp_path / "own" / "config.json").read_text()


def test_a_class_made_by_fsdp_is_saved_as_the_original(tmp_path: Path):
    """FSDP replaces the model's class by one of its own, defined in a module of torch."""
    model = tiny_model("Encoder", "ForMaskedLM")
    model.__class__ = types.new_class(f"FSDP{type(model).__name__}", (type(model),), exec_body=None)
    type(model).__module__ = nn.__name__
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["TinyTransformerEncoderForMaskedLM"]
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_encoder.TinyTransformerEncoderForMaskedLM"
    assert (tmp_path / "modeling_encoder.py").is_file()
