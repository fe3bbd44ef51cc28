"""Protects that Python in a model directory, or named by it, never runs without consent and is never copied."""

import csv
import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
from attack import FORMS, PAYLOAD, assert_clean, edit
from commands import fails, run
from huggingface_hub import ModelCard
from pretraining import TINY, without
from transformers import AutoModelForMaskedLM

from hf_tiny_transformer.common.checkpoints import load_model, read_config, read_tokenizer
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import write_sums
from hf_tiny_transformer.common.foreign_code import find, own_auto_map, strip

INIT = without(TINY, "--vocab_size", "--model.hidden_size", "--model.num_attention_heads", "--model.intermediate_size")
INIT += ["--max-steps=2", "--examples=[]"]
INJECTED = "evil <script>alert(1)</script> ](javascript:x) | `\n## License\nnone"


@pytest.fixture
def texts(tmp_path) -> Path:
    generator, rows = random.Random(0), [["text", "label"]]
    for i in range(80):
        words = [f"word{generator.randint(5, 52)}" for _ in range(6)]
        rows.append([" ".join([*words, str(i)]), INJECTED if i % 2 else "no"])
    path = tmp_path / "a ](javascript:x)<b>.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Words that the attacked models' tokenizer knows."""
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n\n".join(" ".join(f"word{generator.randint(5, 52)}" for _ in range(40)) for _ in range(100)))
    return path


def train(model: Path, texts: Path, output: Path, *flags: str) -> int:
    task = ["--task", texts, "--text", "text", "--label", "label", "--seeds", "1", "--epochs", "1"]
    return run("finetune", "--model", model, *task, "--output", output, *flags)


def adapt(model: Path, corpus: Path, output: Path, *flags: str) -> int:
    return run("pretrain", "--init", model, "--corpus", corpus, "--output", output, *INIT, *flags)


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


@every_source
def test_fine_tuning_runs_and_passes_on_nothing(kind, form, attack, marker, texts, tmp_path, capsys):
    assert train(attack(kind, form), texts, tmp_path / "out") == 0, capsys.readouterr().err
    error = capsys.readouterr().err
    assert (
        "tokenizer_config.json: auto_map names foreign code" in error and "config.json: custom_pipelines names" in error
    )
    assert not marker.exists()
    assert_clean(tmp_path / "out")


@every_source
def test_pretraining_from_it_runs_and_passes_on_nothing(kind, form, attack, marker, corpus, tmp_path, capsys):
    assert adapt(attack(kind, form), corpus, tmp_path / "out") == 0, capsys.readouterr().err
    assert capsys.readouterr().err.count("tokenizer_config.json: auto_map names foreign code") == 1
    assert not marker.exists()
    assert_clean(tmp_path / "out")
    if form == "local":  # a slow one, and the outputs are the same
        assert run("verify", tmp_path / "out") == 0, capsys.readouterr().out
    assert not marker.exists()


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--trust_remote_code"])
@pytest.mark.parametrize("form", list(FORMS))
def test_the_flag_runs_it_and_passes_on_nothing_either(flag, form, attack, marker, corpus, texts, tmp_path):
    """Which shows that the payload works."""
    source = attack("Encoder", form)
    assert adapt(source, corpus, tmp_path / "adapted", flag) == 0
    assert marker.exists()
    marker.unlink()
    for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
        del sys.modules[name]
    assert train(source, texts, tmp_path / "tuned", flag) == 0
    assert marker.exists()
    assert_clean(tmp_path / "adapted")
    assert_clean(tmp_path / "tuned")


@pytest.mark.parametrize("form", list(FORMS))
def test_a_model_that_needs_its_own_code_is_refused_or_run_by_the_flag(form, attack, marker, texts, tmp_path, capsys):
    source = attack("stock", form, model_type="alien")
    edit(source / "config.json", model_type="alien", custom_pipelines={})
    (tmp_path / "blimp").mkdir()
    pair = {"sentence_good": "word5 word6", "sentence_bad": "word7", "field": "x", "linguistics_term": "y"}
    (tmp_path / "blimp" / "a.jsonl").write_text(json.dumps(pair) + "\n")
    scored = ["blimp", "--model", source, "--data", tmp_path / "blimp", "--output"]
    answered = ["predict", "--model", source, "--input", texts, "--text", "text", "--output", tmp_path / "a.jsonl"]
    for arguments in ([*scored, tmp_path / "first"], answered):
        error = fails(capsys, *arguments)
        assert "config.json: auto_map" in error and "--trust-remote-code" in error
    assert train(source, texts, tmp_path / "out") == 2 and not marker.exists()
    assert run(*scored, tmp_path / "second", "--trust-remote-code") == 0
    assert marker.exists()
    assert train(source, texts, tmp_path / "out", "--trust-remote-code") == 2 and not (tmp_path / "out").exists()


def test_prediction_runs_nothing(attack, marker, texts, tmp_path):
    """Known families are opened by our code or transformers', whatever auto_map says."""
    assert train(attack("stock"), texts, tmp_path / "tuned") == 0
    edit(tmp_path / "tuned" / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "payload.Tokenizer"]})
    shutil.copy(tmp_path / "org" / "repo" / "payload.py", tmp_path / "tuned")
    arguments = ["predict", "--model", tmp_path / "tuned", "--input", texts, "--text", "text", "--output"]
    assert run(*arguments, tmp_path / "a.jsonl") == 0
    assert not marker.exists()
    assert run(*arguments, tmp_path / "b.jsonl", "--trust-remote-code") == 0
    assert marker.exists()


@pytest.fixture(scope="module")
def published(corpus_file, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("published") / "run"
    assert run("pretrain", "--corpus", corpus_file, "--output", output, *TINY, "--max-steps=2") == 0
    return output


def test_a_resumed_run_publishes_only_what_we_wrote(published, corpus_file, marker, tmp_path, capsys):
    copy = shutil.copytree(published, tmp_path / "run")
    last = copy / "checkpoints" / "step-2"
    (last / "payload.py").write_text(PAYLOAD.format(marker=str(marker), model_type="x"))
    (last / "layers.py").write_text(PAYLOAD.format(marker=str(marker), model_type="x"))
    (last / "notes.txt").write_text("of others")
    edit(last / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "payload.Tokenizer"]})
    edit(last / "config.json", custom_pipelines={"fill-mask": {"impl": "payload.Pipeline"}})
    write_sums(last)  # else the checkpoint counts as damaged
    command = ["pretrain", "--corpus", corpus_file, "--output", copy, "--resume"]
    assert run(*command) == 0
    error = capsys.readouterr().err
    assert all(name in error for name in ("payload.py: not written", "notes.txt: not written", "custom_pipelines"))
    assert find(copy) is None and not marker.exists()
    assert not (copy / "payload.py").exists() and not (copy / "notes.txt").exists()
    (copy / "payload.py").write_text(PAYLOAD.format(marker=str(marker), model_type="x"))
    assert run(*command) == 1  # nor does the card's code run next to foreign code
    assert "would run foreign code: payload.py" in capsys.readouterr().err
    assert not (copy / "README.md").exists()


def test_names_in_a_card_stay_names(attack, texts, tmp_path, marker):
    """File, label, model and output directory, all chosen by an adversary."""
    model = attack("Encoder", fields=()).rename(tmp_path / "m` ](javascript:x)<i>")
    output = tmp_path / "o|](javascript:x)<u>"
    assert train(model, texts, output) == 0
    body = ModelCard((output / "README.md").read_text()).text
    lines = body.splitlines()
    assert sum(line == "## License" for line in lines) == 1
    prose = "".join(body.split("```")[::2])  # between fences nothing is Markdown
    assert "`m' ](javascript:x)<i>`" in prose  # nor between backticks, where a name stays whole
    prose = re.sub(r"(?<!\\)`[^`]*`", "", prose)
    for mark in ("<script", "<b>", "<u>", "](javascript"):
        assert prose.count(mark) == prose.count("\\" + mark), mark
