"""Protects that Python in or named by a model directory never runs unasked, and that no file or field of it, and no
Markdown in a name, gets into what we write and publish."""

import csv
import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import language_model, tiny_tokenizer
from huggingface_hub import ModelCard
from test_pretrain import TINY, without
from transformers import BertConfig, BertForMaskedLM

import finetune.__main__
import pretrain.cli
from hf_tiny_transformer.__main__ import main
from hf_tiny_transformer.card_code import refused_snippet
from hf_tiny_transformer.card_figures import table_line
from hf_tiny_transformer.cards import escape
from hf_tiny_transformer.foreign_code import find, own_auto_map, strip
from hf_tiny_transformer.runs import run_cli
from hf_tiny_transformer.verify import verify

PAYLOAD = """
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM, FillMaskPipeline, PreTrainedTokenizerFast

Path({marker!r}).touch()
class Tokenizer(PreTrainedTokenizerFast): pass
class Config(BertConfig): model_type = {model_type!r}
class Model(BertForMaskedLM): config_class = Config
class Pipeline(FillMaskPipeline): pass
"""
# {repository} stands for a name on the Hub: transformers takes a path as well, and reads the code from there
FORMS = {"local": "payload.", "hub": "{repository}--payload."}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
INIT = without(TINY, "--vocab_size", "--model.hidden_size", "--model.num_attention_heads", "--model.intermediate_size")
INIT += ["--max-steps=2", "--examples=[]"]
INJECTED = "evil <script>alert(1)</script> ](javascript:x) | `\n## License\nnone"


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """Is there once foreign code ran."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # an answer to a question is no flag
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "it-ran"


@pytest.fixture
def attack(marker, tmp_path):
    """Makes a model directory whose every file names a payload."""

    def make(kind: str, form: str = "local", model_type: str = "bert", fields: tuple = ("auto_map", "custom")) -> Path:
        directory = tmp_path / f"{kind}-{form}"
        if kind == "stock":
            torch.manual_seed(0)
            BertForMaskedLM(BertConfig(vocab_size=53, max_position_embeddings=32, **SHAPE)).save_pretrained(directory)
        else:
            language_model(kind).save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        repository = tmp_path / "org" / "repo"
        prefix = FORMS[form].format(repository=repository)
        code = PAYLOAD.format(marker=str(marker), model_type=model_type)
        for place in (directory, repository):
            place.mkdir(parents=True, exist_ok=True)
            (place / "payload.py").write_text(code)
        (directory / "custom_generate").mkdir()
        (directory / "custom_generate" / "generate.py").write_text(code + "def generate(*_, **__): ...\n")
        tasks = {"fill-mask": "AutoModelForMaskedLM", "text-classification": "AutoModelForSequenceClassification"}
        pipelines = {task: {"impl": f"{prefix}Pipeline", "pt": [auto], "type": "text"} for task, auto in tasks.items()}
        autos = {auto: f"{prefix}Model" for auto in tasks.values()} | {"AutoConfig": f"{prefix}Config"}
        tokenizer = {"AutoTokenizer": [None, f"{prefix}Tokenizer"]}
        named = {"config.json": {"auto_map": autos}, "tokenizer_config.json": {"auto_map": tokenizer}}
        named |= {"processor_config.json": {"auto_map": {"AutoProcessor": f"{prefix}Pipeline"}}}
        named |= {"preprocessor_config.json": {"auto_map": {"AutoImageProcessor": f"{prefix}Pipeline"}}}
        named = named if "auto_map" in fields else {"config.json": {}}
        if "custom" in fields:
            named["config.json"]["custom_pipelines"] = pipelines
            named["generation_config.json"] = {"custom_generate": "org/repo"}
        for name, content in named.items():
            edit(directory / name, **content)
        return directory

    return make


def edit(file: Path, **fields) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | fields))


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
    arguments = ["--model", str(model), "--task", str(texts), "--text", "text", "--label", "label", "--seeds", "1"]
    return finetune.__main__.main([*arguments, "--output", str(output), "--epochs", "1", *flags])


def adapt(model: Path, corpus: Path, output: Path, *flags: str) -> int:
    arguments = ["--init", str(model), "--corpus", str(corpus), "--output", str(output), *INIT, *flags]
    return run_cli(lambda: pretrain.cli.main(arguments))


def assert_clean(directory: Path) -> None:
    """Nothing there names or is code of others, checkpoints included."""
    assert find(directory) is None and all(find(checkpoint) is None for checkpoint in directory.glob("checkpoints/*"))
    assert not [file for file in directory.rglob("*") if "payload" in file.name or "custom_generate" in str(file)]
    for file in directory.rglob("*.json"):
        assert not any(word in file.read_text() for word in ("payload", "custom_pipelines", "org/repo")), file


every_source = pytest.mark.parametrize(
    ("kind", "form"), [("Encoder", "local"), ("Encoder", "hub"), ("stock", "local"), ("stock", "hub")]
)


@every_source
def test_fine_tuning_runs_and_passes_on_nothing(kind, form, attack, marker, texts, tmp_path, capsys):
    assert train(attack(kind, form), texts, tmp_path / "out") == 0, capsys.readouterr().err
    error = capsys.readouterr().err
    assert "tokenizer_config.json: auto_map names code" in error and "config.json: custom_pipelines names" in error
    assert not marker.exists()
    assert_clean(tmp_path / "out")
    if kind != "stock":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["auto_map"] == own_auto_map("tiny_transformer_encoder")


@every_source
def test_pretraining_from_it_runs_and_passes_on_nothing(kind, form, attack, marker, corpus, tmp_path, capsys):
    assert adapt(attack(kind, form), corpus, tmp_path / "out") == 0, capsys.readouterr().err
    assert capsys.readouterr().err.count("tokenizer_config.json: auto_map names code") == 1
    assert not marker.exists()
    assert_clean(tmp_path / "out")
    if form == "local":  # a slow one, and the outputs are the same
        assert run_cli(lambda: main(["verify", str(tmp_path / "out")])) == 0, capsys.readouterr().out
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
def test_a_model_with_code_of_its_own_is_refused_or_run_by_the_flag(form, attack, marker, texts, tmp_path, capsys):
    source = attack("stock", form, model_type="alien")
    edit(source / "config.json", model_type="alien", custom_pipelines={})
    blimp = tmp_path / "blimp"
    blimp.mkdir()
    pair = {"sentence_good": "word5 word6", "sentence_bad": "word7", "field": "x", "linguistics_term": "y"}
    (blimp / "a.jsonl").write_text(json.dumps(pair) + "\n")
    scored = ["--task", "blimp", "--model", str(source), "--data", str(blimp), "--output"]
    answered = ["predict", "--model", str(source), "--input", str(texts), "--text", "text"]
    answered += ["--output", str(tmp_path / "a.jsonl")]
    for arguments in ([*scored, str(tmp_path / "first")], answered):
        assert finetune.__main__.main(arguments) == 2
        error = capsys.readouterr().err
        assert "config.json: auto_map" in error and "--trust-remote-code" in error and "Traceback" not in error
    assert train(source, texts, tmp_path / "out") == 2 and not marker.exists()
    for command in (["attend", "--text", "word5", "--output", str(tmp_path / "page.html"), "--model"], ["verify"]):
        assert run_cli(lambda command=command: main([*command, str(source)])) in (1, 2)
        assert not marker.exists()
    capsys.readouterr()
    assert finetune.__main__.main([*scored, str(tmp_path / "second"), "--trust-remote-code"]) == 0
    assert marker.exists()
    assert train(source, texts, tmp_path / "out", "--trust-remote-code") == 2
    assert "could not carry" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_commands_that_only_read_run_nothing(attack, marker, texts, tmp_path, capsys):
    """predict, blimp and attend open known families by our code or transformers', whatever auto_map says."""
    source = attack("Encoder")
    assert train(attack("stock"), texts, tmp_path / "tuned") == 0
    edit(tmp_path / "tuned" / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "payload.Tokenizer"]})
    shutil.copy(tmp_path / "org" / "repo" / "payload.py", tmp_path / "tuned")
    arguments = ["predict", "--model", str(tmp_path / "tuned"), "--input", str(texts), "--text", "text"]
    assert finetune.__main__.main([*arguments, "--output", str(tmp_path / "a.jsonl")]) == 0
    assert run_cli(lambda: main(["attend", "--model", str(source), "--text", "word5", "--output", "page.html"])) == 0
    assert not marker.exists()
    assert finetune.__main__.main([*arguments, "--output", str(tmp_path / "b.jsonl"), "--trust-remote-code"]) == 0
    assert marker.exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_conversion_passes_on_nothing(command, attack, marker, tmp_path, capsys):
    output = tmp_path / "out"
    if command == "export":
        arguments = ["export", "--format", "stock", "--model", str(attack("Encoder")), "--output", str(output)]
    else:
        arguments = ["import", "--from", str(attack("stock")), "--output", str(output)]
    assert run_cli(lambda: main(arguments)) == 0
    assert "tokenizer_config.json: auto_map" in capsys.readouterr().err
    assert not marker.exists()
    assert_clean(output)


@pytest.fixture(scope="module")
def published(corpus_file, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("published") / "run"
    flags = ["--corpus", str(corpus_file), "--output", str(output), *TINY, "--max-steps=2"]
    assert run_cli(lambda: pretrain.cli.main(flags)) == 0
    return output


def tamper_config(directory: Path) -> None:
    auto_map = json.loads((directory / "config.json").read_text())["auto_map"]
    edit(directory / "config.json", auto_map=auto_map | {"AutoTokenizer": ["payload.Tokenizer", None]})


TAMPERED = {
    "a field of ours": (tamper_config, "config.json: auto_map"),
    "a pipeline": (lambda d: edit(d / "config.json", custom_pipelines={"fill-mask": {}}), "custom_pipelines"),
    "a tokenizer": (lambda d: edit(d / "tokenizer_config.json", auto_map=["payload.T", None]), "auto_map"),
    "a class on the Hub": (lambda d: edit(d / "tokenizer_config.json", tokenizer_class="org/repo--a.T"), "tokenizer_"),
    "any other JSON": (lambda d: edit(d / "training" / "x.json", deep=[{"auto_map": {"A": "b.C"}}]), "x.json: deep.0."),
    "a file more": (lambda d: (d / "payload.py").write_text(PAYLOAD), "payload.py"),
    "a file in a folder": (lambda d: (d / "training" / "generate.py").write_text(PAYLOAD), "generate.py"),
    "a file changed": (lambda d: (d / "layers.py").write_text((d / "layers.py").read_text() + "\n"), "layers.py"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_verify_and_push_run_only_our_code(what, published, marker, tmp_path, monkeypatch, capsys):
    tamper, told = TAMPERED[what]
    copy = shutil.copytree(published, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    tamper(copy)
    monkeypatch.setattr("hf_tiny_transformer.verify.run_apart", lambda *_: pytest.fail("run"))
    found = {finding.check: finding.problem for finding in verify(copy) if finding.problem}
    assert list(found) == ["no code of others"] and told in found["no code of others"]
    monkeypatch.setattr("hf_tiny_transformer.push.send", lambda *_, **__: pytest.fail("sent"))
    assert run_cli(lambda: main(["push", "--model", str(copy), "--repo", "mine"])) == 1
    assert "no code of others: FAILED" in capsys.readouterr().out


def test_a_resumed_run_publishes_only_what_we_wrote(published, corpus_file, marker, tmp_path, capsys):
    run = shutil.copytree(published, tmp_path / "run")
    last = run / "checkpoints" / "step-2"
    (last / "payload.py").write_text(PAYLOAD.format(marker=str(marker), model_type="x"))
    (last / "layers.py").write_text(PAYLOAD.format(marker=str(marker), model_type="x"))
    (last / "notes.txt").write_text("of others")
    edit(last / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "payload.Tokenizer"]})
    edit(last / "config.json", custom_pipelines={"fill-mask": {"impl": "payload.Pipeline"}})
    flags = ["--corpus", str(corpus_file), "--output", str(run), "--resume"]
    assert run_cli(lambda: pretrain.cli.main(flags)) == 0
    error = capsys.readouterr().err
    assert all(name in error for name in ("payload.py: not written", "notes.txt: not written", "custom_pipelines"))
    assert find(run) is None and not marker.exists()
    assert not (run / "payload.py").exists() and not (run / "notes.txt").exists()
    (run / "payload.py").write_text(PAYLOAD.format(marker=str(marker), model_type="x"))
    assert run_cli(lambda: pretrain.cli.main(flags)) == 1, "nor does a snippet run beside code of others"
    assert "payload.py" in capsys.readouterr().err and not (run / "README.md").exists()


def test_the_cards_code_does_no_more_than_ask_the_model(published, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_tiny_transformer.verify.run_apart", lambda *_: (True, ""))
    card = (published / "README.md").read_text()
    assert not [finding for finding in verify(published) if finding.problem]
    copy = shutil.copytree(published, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    (copy / "README.md").write_text(card.replace("pipe = ", "__import__('os').system('touch it-ran')\npipe = ", 1))
    (finding,) = [finding for finding in verify(copy) if finding.problem]
    assert finding.check == "card: code runs" and "not run" in finding.problem


OPEN = 'from transformers import pipeline, AutoModel\nmodel_id = "."\npipe = pipeline("fill-mask", model=model_id)\n'


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from transformers import utils",
        "eval('1')",
        "pipe.__class__",
        "pipe.model.save_pretrained('x')",
        "pipeline('fill-mask', model='org/repo', trust_remote_code=True)",
        "AutoModel.from_pretrained('org/repo', trust_remote_code=True)",
        "AutoModel.from_pretrained(model_id, trust_remote_code=True, code_revision='x')",
        "model_id = 'org/repo'",
        "for model_id in ['org/repo']:\n    pipeline('fill-mask', model=model_id)",
        "pipe.generate(custom_generate='org/repo', trust_remote_code=True)",
        "pipe.generate(**{'custom_generate': 'org/repo'})",
        "pipe.generate(**{k: v for k, v in [('custom_generate', 'org/repo')]})",
        "print = pipeline",
        "print('x', file='y')",
        "lambda: 1",
        "def f(): ...",
        "(",
    ],
)
def test_other_code_in_a_card_is_refused(line):
    assert refused_snippet(OPEN) is None
    assert refused_snippet(OPEN + line + "\n") is not None


def test_a_vocabulary_may_hold_any_word():
    for content in ({"auto_map": 7}, {"vocab": {"custom_pipelines": 1}}, {"id2label": {"0": "auto_map"}}):
        assert strip(json.loads(json.dumps(content))) == []
    content = {"text_config": {"auto_map": {"AutoModel": "a.B"}}, "keep": 1}
    assert strip(content) == ["text_config.auto_map"] and content == {"text_config": {}, "keep": 1}


def test_names_in_a_card_stay_names(attack, texts, tmp_path, marker):
    """File, label, model and output directory, all chosen by an adversary."""
    model = attack("Encoder", fields=()).rename(tmp_path / "m` ](javascript:x)<i>")
    output = tmp_path / "o|](javascript:x)<u>"
    assert train(model, texts, output) == 0
    body = ModelCard((output / "README.md").read_text()).text
    lines = body.splitlines()
    assert sum(line.startswith("## Lic") for line in lines) == 1 and "## License" not in lines
    prose = "".join(body.split("```")[::2])  # between fences nothing is Markdown
    assert "`m' ](javascript:x)<i>`" in prose  # nor between backticks, where a name stays whole
    prose = re.sub(r"(?<!\\)`[^`]*`", "", prose)
    for mark in ("<script", "<b>", "<u>", "](javascript"):
        assert prose.count(mark) == prose.count("\\" + mark), mark


def test_one_function_escapes():
    assert escape("a\n## License\r\n| b | `c` <d> [e](f)") == r"a ## License \| b \| \`c\` \<d\> \[e\](f)"
    assert escape("a\u202eb\x00 `c`\n", "code") == "ab 'c'"
    assert "```" not in escape("x\n```\n## License", "block")
    assert table_line(("a|b", "`0f-1`", "\\")) == "| a\\|b | `0f-1` | \\\\ |"
