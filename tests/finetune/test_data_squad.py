"""Protects questions about texts: answers are where the file says, documents stay whole, bad fields are named."""

import json

import numpy as np
import pytest
from data_fixtures import WORDS, refuses, write_files

from finetune.data.squad import each_question, load_squad


def squad(documents: int, seed: int, *, unanswerable: bool = False) -> dict:
    """Return SQuAD's JSON with four paragraphs per document; the one good word is the answer."""
    draw = np.random.default_rng(seed)
    data = []
    for d in range(documents):
        paragraphs = []
        for p in range(4):
            words = list(draw.choice(WORDS, draw.integers(4, 20)))
            at, empty = int(draw.integers(len(words))), unanswerable and bool(draw.integers(2))
            words[at] = WORDS[0] if empty else f"good{d}"
            answers = [] if empty else [{"text": words[at], "answer_start": len(" ".join([*words[:at], ""]))}] * 2
            question = {"id": f"{d}-{p}", "question": " a b ", "answers": answers, "is_impossible": empty}
            paragraphs.append({"context": f"{' '.join(words)} {d}", "qas": [question]})
        data.append({"title": f"document {d}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": data}


def folder_of(folder, train, dev=None) -> str:
    train = train if isinstance(train, str) else json.dumps(train)
    return write_files(folder, {"train-v2.0.json": train, "dev-v2.0.json": json.dumps(dev or squad(12, 1))})


@pytest.mark.parametrize("unanswerable", [True, False])
def test_answers_are_in_the_context_and_validation_is_whole_documents(unanswerable, tmp_path):
    train = squad(60, 0, unanswerable=unanswerable)
    found, splits = load_squad(folder_of(tmp_path, "\ufeff" + json.dumps(train)))
    assert found == unanswerable
    counts = {name: len(rows) for name, rows in splits.named().items()}
    assert counts == {"train": 228, "validation": 12, "dev": 48}
    for example in splits.train:
        assert example.texts[0] == "a b" and (example.label or unanswerable)
        assert all(example.texts[1][start : start + len(text)] == text for start, text in example.label)
    contexts = {example.texts[1] for example in splits.validation}
    for document in train["data"]:
        of_document = {paragraph["context"] for paragraph in document["paragraphs"]}
        assert of_document <= contexts or not of_document & contexts


def test_one_answer_to_all_questions_is_trainable(tmp_path):
    content = squad(40, 0)
    for document in content["data"]:
        for paragraph in document["paragraphs"]:
            paragraph["context"] = "yes"
            paragraph["qas"][0]["answers"] = [{"text": "yes", "answer_start": 0}]
    load_squad(folder_of(tmp_path, content))[1].require_trainable("task qa")


def test_questions_are_read_for_predict_without_their_answers(tmp_path):
    folder_of(tmp_path, {"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 1}, 2]}]}]})
    path = tmp_path / "train-v2.0.json"
    assert list(each_question(path)) == [
        (f"{path}, data[0].paragraphs[0].qas[0]", 0, "c", {"id": 1}),
        (f"{path}, data[0].paragraphs[0].qas[1]", 0, "c", 2),
    ]


def edited(change) -> str:
    content = squad(3, 0)
    change(content["data"][1]["paragraphs"][2])
    return json.dumps(content)


WHERE = "train-v2.0.json, data[1].paragraphs[2]"
BROKEN = {
    "no JSON": ('{"data": [\n{]}', "train-v2.0.json, line 2: broken JSON"),
    "no object": ("[]", "is not a JSON object; expected SQuAD's format"),
    "no data": ("{}", "train-v2.0.json: no field 'data'"),
    "no context": (edited(lambda paragraph: paragraph.pop("context")), f"{WHERE}: no field 'context'"),
    "no question": (edited(lambda p: p["qas"][0].pop("question")), f"{WHERE}.qas[0]: no field 'question'"),
    "null question": (edited(lambda p: p["qas"][0].update(question=None)), f"{WHERE}.qas[0]: no field 'question'"),
    "no answers": (edited(lambda p: p["qas"][0].update(answers=None)), f"{WHERE}.qas[0]: no field 'answers'"),
    "a text for a place": (
        edited(lambda p: p["qas"][0].update(answers=[{"text": "a", "answer_start": "1"}])),
        f"{WHERE}.qas[0]: no field 'answer_start' of type int",
    ),
    "elsewhere": (
        edited(lambda p: p["qas"][0].update(answers=[{"text": "zzz", "answer_start": 1}])),
        f"{WHERE}.qas[0]: the context does not have 'zzz' at answer_start 1",
    ),
    "half a surrogate": (edited(lambda p: p.update(context="a\ud800")), f"{WHERE}, context: holds half of a surrogate"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_fields_are_refused_with_their_place(case, tmp_path):
    content, fragment = BROKEN[case]
    assert fragment in refuses(load_squad, folder_of(tmp_path, content))


def test_no_data_and_too_few_documents_are_refused(tmp_path):
    assert "--data is required" in refuses(load_squad, None)
    _, splits = load_squad(folder_of(tmp_path, squad(1, 0)))
    assert "the train split is empty" in refuses(splits.require_trainable, "task qa")
