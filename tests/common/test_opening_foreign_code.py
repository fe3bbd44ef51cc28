"""Protects that Python in a model directory, or named by it, never runs without consent and is never copied."""

import json

import pytest
from attack import FORMS, assert_clean, edit
from commands import fails, run
from transformers import AutoModelForMaskedLM

from hf_tiny_transformer.common.checkpoints import load_model, read_config, read_tokenizer
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.foreign_code import own_auto_map, strip

every_source = pytest.mark.parametrize(
    ("kind", "form"), [("Encoder", "local"), ("Encoder", "hub"), ("stock", "local"), ("stock", "hub")]
)


def open_and_save(source, output, trust_remote_code: bool = False) -> None:
    config = read_config(source, trust_remote_code=trust_remote_code)
    read_tokenizer(source, config, trust_remote_code=trust_remote_code).save_pretrained(output)
    model = load_model(source, AutoModelForMaskedLM, config, trust_remote_code=trust_remote_code)
    model.save_pretrained(output)


@every_source
def test_the_opener_runs_and_passes_on_nothing(kind, form, attack, marker, tmp_path, capsys):
    """The opener strips code references, so that no caller can forget it."""
    open_and_save(attack(kind, form), tmp_path / "out")
    error = capsys.readouterr().err
    assert "tokenizer_config.json: auto_map names foreign code" in error
    assert error.count("config.json: custom_pipelines names foreign code") == 1
    assert not marker.exists()
    assert_clean(tmp_path / "out")
    if kind != "stock":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["auto_map"] == own_auto_map("tiny_transformer_encoder")


@pytest.mark.parametrize("form", list(FORMS))
def test_trusted_code_runs_and_is_not_passed_on_either(form, attack, marker, tmp_path):
    """Which also shows that the payload works."""
    source = attack("stock", form, model_type="alien")
    edit(source / "config.json", model_type="alien", custom_pipelines={})
    with pytest.raises(UserError, match=r"config\.json: auto_map names code .* add --trust-remote-code"):
        read_config(source)
    assert not marker.exists()
    open_and_save(source, tmp_path / "out", trust_remote_code=True)
    assert marker.exists()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"auto_map", "custom_pipelines"} & written.keys()
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("command", ["export", "import"])
def test_conversion_passes_on_nothing(command, attack, marker, tmp_path, capsys):
    output = tmp_path / "out"
    if command == "export":
        assert run("export", "--format", "stock", "--model", attack("Encoder"), "--output", output) == 0
    else:
        assert run("import", "--from", attack("stock"), "--output", output) == 0
    assert "tokenizer_config.json: auto_map" in capsys.readouterr().err
    assert not marker.exists()
    assert_clean(output)


def test_attend_and_verify_run_nothing(attack, marker, tmp_path, capsys):
    source = attack("Encoder")
    assert run("attend", "--model", source, "--text", "word5", "--output", "page.html") == 0
    assert run("verify", source) == 1
    alien = attack("stock", model_type="alien")
    edit(alien / "config.json", model_type="alien", custom_pipelines={})
    assert "--trust-remote-code" in fails(capsys, "attend", "--model", alien, "--text", "x", "--output", "page.html")
    assert not marker.exists()


def test_a_vocabulary_may_hold_any_word():
    for content in ({"auto_map": 7}, {"vocab": {"custom_pipelines": 1}}, {"id2label": {"0": "auto_map"}}):
        assert strip(json.loads(json.dumps(content))) == []
    content = {"text_config": {"auto_map": {"AutoModel": "a.B"}}, "keep": 1}
    assert strip(content) == ["text_config.auto_map"] and content == {"text_config": {}, "keep": 1}
