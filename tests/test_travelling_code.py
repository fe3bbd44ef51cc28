"""Protects that a saved model opens where this package is not: its code lies beside it, for all of its family."""

import json
import shutil
import subprocess
import sys
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

FLAT = {"attention.py", "layers.py", "configuration_base.py"}  # among what each family needs
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
    model.save_pretrained(again)  # and it travels on
    for opened in (model, getattr(transformers, name).from_pretrained(again, trust_remote_code=True)):
        with torch.no_grad():
            torch.testing.assert_close(opened.eval()(**example).logits, expected, atol=1e-5, rtol=1e-5)
    assert transformers.AutoModel.from_pretrained(again, trust_remote_code=True)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A language model of each family with a tokenizer, and under examples/ what it makes of a batch."""
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
    """Through each class the family serves, not only the one that was saved; same outputs; saved again, once more."""
    shutil.copytree(checkpoints, tmp_path / "moved")
    opened = set(run_outside(OPEN_EVERYWHERE, tmp_path / "moved" / "models", cache=tmp_path).splitlines())
    table = {
        f"{config_class.__name__.removeprefix('TinyTransformer').removesuffix('Config')} {auto.__name__} {c.__name__}"
        for config_class, model_classes in ours.FAMILIES.items()
        for auto, c in model_classes.items()
    }
    images = {line for line in table if line.startswith("EncoderImage ")}
    assert opened == table - images


def test_an_image_classifier_opens_without_this_package(tmp_path: Path):
    """It reads pixels, and its processor is a stock one; otherwise as above."""
    torch.manual_seed(0)
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
def test_what_travels_is_the_family_and_nothing_else(family: str, checkpoints: Path):
    """Flat copies of the files that its classes need; none of the package's own tools."""
    directory = checkpoints / "models" / family
    files = {file.name for file in directory.glob("*.py")}
    package = Path(ours.__file__).parent
    assert files > FLAT | {f"modeling_{family.lower()}.py", f"configuration_{family.lower()}.py"}
    assert not files & {"__init__.py", "__main__.py", "runs.py"}
    assert not any(name.startswith(("conversion", "export")) for name in files)
    assert all((directory / name).read_bytes() == (package / name).read_bytes() for name in files)
    auto_map = json.loads((directory / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == f"configuration_{family.lower()}.TinyTransformer{family}Config"
    assert "AutoTokenizer" not in auto_map


@pytest.mark.parametrize("family", list(FAMILIES))
def test_with_this_package_no_trust_is_asked_for(family: str, checkpoints: Path, monkeypatch, caplog):
    """Registered code wins: no question, no warning, whatever is said about remote code."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    directory = checkpoints / "models" / family
    auto = "AutoModelForSeq2SeqLM" if family == "Seq2Seq" else f"AutoModel{LANGUAGE_MODELS[family]}"
    for trust in (None, False, True):
        model = getattr(transformers, auto).from_pretrained(directory, trust_remote_code=trust)
        assert type(model) is model_class(family, LANGUAGE_MODELS[family])
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust)
        assert type(getattr(transformers, auto).from_config(config, trust_remote_code=trust)) is type(model)
    assert not caplog.records


def test_half_a_model_and_a_subclass_do_not_pass_for_more_than_they_are(tmp_path: Path):
    """What is saved from a class that is in no table opens as the family does, by its config."""
    tiny_model("Seq2Seq").encoder.save_pretrained(tmp_path / "half")
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "half")) is ours.TinyTransformerSeq2SeqModel

    class OwnConfig(ours.TinyTransformerEncoderConfig):
        model_type = "own"

    OwnConfig().save_pretrained(tmp_path / "own")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["config.json"]
    assert "auto_map" not in (tmp_path / "own" / "config.json").read_text()


def test_a_class_that_sharding_put_in_place_travels_as_the_original(tmp_path: Path):
    """FSDP gives the model a class of its own, made in a module of torch's: the code is ours all the same."""
    model = tiny_model("Encoder", "ForMaskedLM")
    model.__class__ = types.new_class(f"FSDP{type(model).__name__}", (type(model),), exec_body=None)
    type(model).__module__ = nn.__name__
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["TinyTransformerEncoderForMaskedLM"]
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_encoder.TinyTransformerEncoderForMaskedLM"
    assert (tmp_path / "modeling_encoder.py").is_file()


def test_our_classes_bring_the_models_only():
    """Besides what transformers' own model classes need: nothing of ours but the model files, nothing of others'."""
    code = """
import sys
from transformers import AutoModelForCausalLM
from transformers.models.bert import modeling_bert
from transformers.generation import GenerationMixin
before = set(sys.modules)
from hf_tiny_transformer import FAMILIES
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    added = done.stdout.split()
    assert added and all(name.split(".")[0] in ("hf_tiny_transformer", "transformers") for name in added)
    assert not {"hf_tiny_transformer.runs", "hf_tiny_transformer.conversion_bert"} & set(added)
