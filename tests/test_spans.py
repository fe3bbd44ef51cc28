"""Protects answers found in texts: windows hold every part of a long text, the best span wins, the file is checked."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_finetune import bert_config, results_of, toy_tokenizer
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from finetune.checkpoint import Checkpoint
from finetune.cli import main
from finetune.examples import Example
from finetune.kinds.spans import LONGEST_ANSWER, NO_ANSWER, Spans, best_span
from finetune.metrics import score
from finetune.squad_data import load_squad, read_squad
from hf_tiny_transformer.cards import run_snippet, snippet

WORDS = [f"plain{i}" for i in range(24)] + [f"bad{i}" for i in range(8)]


def opened(max_length: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Checkpoint:
    return Checkpoint("here", Spans.auto_class, None, tokenizer or toy_tokenizer(), max_length)


def question(words: int, at: int, *, answer: int = 2, seed: int = 0) -> Example:
    """A context of `words` words; the answer is the `answer` words from number `at` on."""
    chosen = list(np.random.default_rng(seed).choice(WORDS, words))
    start = len(" ".join([*chosen[:at], ""]))
    return Example(("good1 good2", " ".join(chosen)), [[start, " ".join(chosen[at : at + answer])]])


@pytest.mark.parametrize("max_length", [16, 24, 512])
def test_windows_cover_the_text_and_right_logits_give_the_answer_back(max_length):
    examples = [question(words, at, seed=words) for words in (2, 20, 61, 100) for at in (0, words // 2, words - 2)]
    split = Spans().encode_split(examples, opened(max_length))
    covered = [set() for _ in examples]
    outputs = np.full((len(split.rows), max_length, 2), -5.0)
    for i, (row, window) in enumerate(zip(split.rows, split.windows, strict=True)):
        assert len(row["input_ids"]) <= max_length
        context = examples[window.example].texts[1]
        for position, (start, end) in enumerate(window.offsets, start=window.first):
            covered[window.example].add((start, end))
            token = toy_tokenizer().convert_tokens_to_ids(context[start:end])
            assert row["input_ids"][position] == token
        outputs[i, row["start_positions"], 0] = outputs[i, row["end_positions"], 1] = 5.0
    for example, spans in zip(examples, covered, strict=True):
        assert len(spans) == len(example.texts[1].split())
    expected = [example.label[0][1] for example in examples]
    assert Spans().decode(outputs, split) == Spans(unanswerable=True).decode(outputs, split) == expected
    assert Spans().scores(outputs, split) == {"f1": 1.0, "exact_match": 1.0}
    assert (len(split.rows) > len(examples)) == (max_length < 512)


def test_a_window_is_trained_on_the_answer_only_if_it_holds_all_of_it():
    example = question(30, 9, answer=4)
    split = Spans().encode_split([example], opened(20))
    start, text = example.label[0]
    for row, window in zip(split.rows, split.windows, strict=True):
        whole = window.offsets[0][0] <= start and start + len(text) <= window.offsets[-1][1]
        if whole:
            first, last = (window.offsets[row[name] - window.first] for name in ("start_positions", "end_positions"))
            assert example.texts[1][first[0] : last[1]] == text
        else:
            assert row["start_positions"] == row["end_positions"] == NO_ANSWER
    assert {row["start_positions"] == NO_ANSWER for row in split.rows} == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_the_best_span_is_the_best_of_all(seed):
    logits = np.random.default_rng(seed).normal(size=(50, 2))
    every = {
        (start, end): logits[start, 0] + logits[end, 1]
        for start in range(50)
        for end in range(start, min(50, start + LONGEST_ANSWER))
    }
    best = max(every, key=every.__getitem__)
    assert best_span(logits) == (pytest.approx(every[best]), *best)


def test_of_several_windows_the_surest_answers_and_nothing_may_be_an_answer():
    split = Spans().encode_split([question(40, 0)], opened(20))
    outputs = np.zeros((len(split.rows), 20, 2))
    window = split.windows[1]
    outputs[1, window.first + 2] = 3.0
    answer = split.examples[0].texts[1][slice(*window.offsets[2])]
    assert Spans().decode(outputs, split) == Spans(unanswerable=True).decode(outputs, split) == [answer]
    outputs[:, NO_ANSWER] = 4.0
    assert Spans().decode(outputs, split) == [answer] and Spans(unanswerable=True).decode(outputs, split) == [""]
    outputs[0, NO_ANSWER] = 1.0  # the least sure of it decides
    assert Spans(unanswerable=True).decode(outputs, split) == [answer]


def test_a_long_question_leaves_room_for_the_text():
    example = question(30, 3)
    split = Spans().encode_split([Example((" ".join(["good1"] * 50), example.texts[1]), example.label)], opened(16))
    assert all(len(row["input_ids"]) <= 16 for row in split.rows)
    assert sum(row["start_positions"] != NO_ANSWER for row in split.rows) >= 1


def squad(documents: int, seed: int, *, unanswerable: bool = False) -> dict:
    """The one good word is the answer; without one there is none."""
    draw = np.random.default_rng(seed)
    data = []
    for d in range(documents):
        paragraphs = []
        for _ in range(4):
            words = list(draw.choice(WORDS, draw.integers(4, 20)))
            at = int(draw.integers(len(words)))
            empty = unanswerable and bool(draw.integers(2))
            if not empty:
                words[at] = f"good{draw.integers(8)}"
            start = len(" ".join([*words[:at], ""]))
            answers = [] if empty else [{"text": words[at], "answer_start": start}] * 2
            qa = {"id": "x", "question": "plain1 plain2", "answers": answers}
            paragraphs.append({"context": " ".join(words), "qas": [qa | {"is_impossible": empty}]})
        data.append({"title": f"document {d}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": data}


@pytest.fixture(scope="session")
def asked(tmp_path_factory) -> Path:
    """`model/` and `data/`, every context longer than a row for some."""
    folder = tmp_path_factory.mktemp("asked")
    torch.manual_seed(0)
    BertForMaskedLM(bert_config()).save_pretrained(folder / "model")
    toy_tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    (folder / "data" / "train-v2.0.json").write_text(json.dumps(squad(60, 0, unanswerable=True)))
    (folder / "data" / "dev-v2.0.json").write_text(json.dumps(squad(12, 1, unanswerable=True)))
    return folder


def command(asked: Path, output: Path, *flags) -> list[str]:
    places = {"model": asked / "model", "task": "qa", "data": asked / "data", "output": output, "seeds": 1}
    return [str(word) for name, value in places.items() for word in (f"--{name}", value)] + [*map(str, flags)]


def test_the_command_learns_to_point_at_answers(asked, tmp_path):
    flags = ["--learning_rate", "1e-2", "--epochs", "8", "--batch_size", "16", "--max_length", "16"]
    assert main(command(asked, tmp_path / "out", *flags)) == 0
    results = results_of(tmp_path / "out")
    assert results["metric"] == "f1" and results["data"]["counts"] == {"train": 228, "validation": 12, "dev": 48}
    assert set(results["scores"]["dev"]) == {"f1", "exact_match"} and results["test"]["mean"] > 0.8
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="")))
    truth, _ = read_squad(asked / "data" / "dev-v2.0.json")
    assert [(row["question"], row["context"]) for row in rows] == [example.texts for example in truth]
    accepted = [[text for _, text in example.label] for example in truth]
    assert [json.loads(row["label"]) for row in rows] == accepted
    assert score("squad", [row["prediction"] for row in rows], accepted)["f1"] == results["test"]["mean"]
    assert {bool(row["prediction"]) for row in rows} == {True, False}
    card = (tmp_path / "out" / "README.md").read_text()
    assert run_snippet(snippet(card), tmp_path / "out") == results_of(tmp_path / "out")["snippet_printed"]
    model = Spans.auto_class.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "BertForQuestionAnswering"


def test_validation_is_whole_documents(asked):
    kind, splits = load_squad(str(asked / "data"))
    assert kind.unanswerable and len(splits.validation) == 12
    contexts = {example.texts[1] for example in splits.validation}
    of_documents = [
        {paragraph["context"] for paragraph in document["paragraphs"]}
        for document in json.loads((asked / "data" / "train-v2.0.json").read_text())["data"]
    ]
    assert all(document <= contexts or not document & contexts for document in of_documents)


def test_version_one_has_an_answer_to_everything(tmp_path):
    for name, seed in (("train-v1.1.json", 0), ("dev-v1.1.json", 1)):
        (tmp_path / name).write_text(json.dumps(squad(30, seed)))
    kind, splits = load_squad(str(tmp_path))
    assert not kind.unanswerable and len(splits.train) == 112
    example = splits.train[0]
    assert all(example.texts[1][start : start + len(text)] == text for start, text in example.label)


def edited(change) -> str:
    content = squad(3, 0)
    change(content["data"][1]["paragraphs"][2])
    return json.dumps(content)


WHERE = "train.json, data[1].paragraphs[2]"
BROKEN = {
    "no JSON": ('{"data": [\n{]}', "train.json, line 2: broken JSON"),
    "no data": ("[]", "train.json: no field 'data'"),
    "no context": (edited(lambda paragraph: paragraph.pop("context")), f"{WHERE}: no field 'context'"),
    "no question": (edited(lambda p: p["qas"][0].pop("question")), f"{WHERE}.qas[0]: no field 'question'"),
    "no answers": (edited(lambda p: p["qas"][0].update(answers=None)), f"{WHERE}.qas[0]: no field 'answers'"),
    "a text for a place": (
        edited(lambda p: p["qas"][0].update(answers=[{"text": "a", "answer_start": "1"}])),
        f"{WHERE}.qas[0]: no field 'answer_start' of type int",
    ),
    "elsewhere": (
        edited(lambda p: p["qas"][0].update(answers=[{"text": "zzz", "answer_start": 1}])),
        f"{WHERE}.qas[0]: the context has not 'zzz' at answer_start 1",
    ),
    "one document": (json.dumps(squad(1, 0)), "the train split is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_ends_in_one_line(name, asked, tmp_path, capsys):
    content, fragment = BROKEN[name]
    (tmp_path / "train.json").write_text(content)
    (tmp_path / "dev.json").write_text(json.dumps(squad(2, 1)))
    assert main([*command(asked, tmp_path / "out"), "--data", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and fragment in captured.err
    assert captured.out == "" and len(list(tmp_path.iterdir())) == 2


def test_too_short_rows_are_refused(asked, tmp_path, capsys):
    assert main(command(asked, tmp_path / "out", "--max_length", 12)) == 2
    assert "--max_length 12: must be at least 16" in capsys.readouterr().err
