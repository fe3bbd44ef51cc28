"""Protects model cards: they state what they are given, their code runs, and no name in them becomes Markdown."""

import json
import subprocess

import pytest
import torch
from cards import CODE, make_card
from families import tiny_tokenizer
from huggingface_hub import ModelCard

from hf_tiny_transformer.common.errors import RunError, UserError
from hf_tiny_transformer.publish.card import Section, escape, markdown_table, table_line, write_card
from hf_tiny_transformer.publish.facts import (
    check_license,
    describe_tokenizer,
    estimate_energy,
    public_name,
    spread,
    time_and_energy,
)


def test_a_card_states_what_it_is_given(published):
    text = (published / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("mit", "transformers", "tiny")
    figures = [(one.dataset_split, one.metric_type, one.metric_value) for one in card.data.eval_results]
    assert figures == [("test", "accuracy", 0.712346), ("validation", "loss", 2.5)]
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    parts = ["Data", "Model", "Training", "Evaluation"]
    assert headings == ["How to load", *parts, "Intended use", "Limitations", "License"]
    assert "| fingerprint | `0f-1` |" in text and "| --- | ---: |\n| test | 71.23 ± 0.50 |" in text
    assert CODE in text and "`mit`." in text and "`import hf_tiny_transformer` first" in text
    printed = text.partition("```text\n")[2].partition("\n```")[0]
    assert len(printed.splitlines()) == 3
    facts = json.loads((published / "training" / "card.json").read_text())
    assert facts["rows"]["Model"] == [["parameters", "12,345"]]
    loss = {"split": "validation", "metric": "loss", "value": 2.5, "file": "results.json", "pointer": "/losses/0"}
    assert facts["figures"][1] == loss


def test_a_card_without_license_and_tables(tmp_path):
    code = "from transformers import pipeline"
    assert write_card(tmp_path, make_card(code=code, data=Section("Some text."), metadata={})) == ""
    text = (tmp_path / "README.md").read_text()
    assert "No license is stated." in text and "## Data\n\nSome text.\n\n## Model" in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize(
    ("code", "files", "problem"),
    [
        ("print(pipe('x'))", [], "NameError"),
        ("open('it-ran', 'w')", [], "would not run its code"),
        ("print(pipe('x'))", ["payload.py"], "foreign code: payload.py"),
    ],
)
def test_code_that_fails_or_is_not_known_or_would_run_foreign_code_leaves_no_card(code, files, problem, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(RunError, match=problem):
        write_card(tmp_path, make_card(code=code))
    assert [path.name for path in tmp_path.iterdir()] == files


INJECTED = "evil <script>alert(1)</script> ](javascript:x) | `\n## License\nnone"


def test_names_in_a_card_stay_names(tmp_path):
    """Whatever a user or a foreign file calls a model, a column or a label."""
    section = Section(escape(INJECTED), (INJECTED, "x"), [(INJECTED, "1")])
    card = make_card(name=INJECTED, code="", data=section, dataset={"name": INJECTED, "type": "x"})
    write_card(tmp_path, card)
    written = ModelCard((tmp_path / "README.md").read_text())
    assert written.data.eval_results[0].dataset_name == INJECTED
    prose = "".join(written.text.split("```")[::2])  # nothing is Markdown between fences
    assert sum(line == "## License" for line in prose.splitlines()) == 1
    for mark in ("<script", "](javascript"):
        assert prose.count(mark) == prose.count("\\" + mark) > 0, mark


def test_one_function_escapes():
    assert escape("a\n## License\r\n| b | `c` <d> [e](f)") == r"a ## License \| b \| \`c\` \<d\> \[e\](f)"
    assert escape("a\u202eb\x00 `c`\n", "code") == "ab 'c'"
    assert "```" not in escape("x\n```\n## License", "block")
    assert table_line(("a|b", "`0f-1`", "\\")) == "| a\\|b | `0f-1` | \\\\ |"
    assert markdown_table(("a", "b"), [("x", "1,000"), ("1", "-")]).splitlines()[1] == "| --- | ---: |"


def test_energy_is_time_by_watts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    estimate = estimate_energy(3600, processes=2)
    assert estimate["kwh"] == pytest.approx(6 * 10 / 1000) and "assumed 10 W" in estimate["method"]
    rows = time_and_energy(3600, estimate)
    assert rows[0] == ("training time", "60.0 minutes") and rows[1][1].startswith("60 Wh: time x 6 CPU")


def test_a_gpu_of_unknown_power_gets_no_estimate(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for answer, kwh in (("700.00\n", 0.7), ("[N/A]\n", None)):
        done = subprocess.CompletedProcess([], 0, stdout=answer)
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        assert estimate_energy(3600)["kwh"] == kwh


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("/home/me/texts", "texts"),
        ("/home/me/*.txt", "*.txt"),
        ("--model=/home/me/model", "--model=model"),
        ("../texts", "texts"),
        ("~/texts", "texts"),
        (r"C:\texts\a.txt", "a.txt"),
        ("runs/mine", "runs/mine"),
        ("hub:nyu-mll/glue:sst2", "hub:nyu-mll/glue:sst2"),
        ("--seeds", "--seeds"),
    ],
)
def test_names_without_folders_of_this_machine(given, published):
    assert public_name(given) == published


def test_facts_of_models():
    assert describe_tokenizer(tiny_tokenizer()) == "WordPiece, 53 tokens"
    assert (spread(0.5, None), spread(0.5, 0.01)) == ("50.00", "50.00 ± 1.00")
    for name in (None, "mit", "apache-2.0", "cc-by-sa-4.0"):
        check_license(name)
    with pytest.raises(UserError, match="--license My Terms: expected the Hub's identifier"):
        check_license("My Terms")
