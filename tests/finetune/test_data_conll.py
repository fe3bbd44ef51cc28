"""Protects tagged words: columns and notations of real files, the Hub's columns, and lines of bad files."""

import datasets
import pytest
from data_fixtures import refuses, write_files

from finetune.data import Example
from finetune.data.conll import load_tagged, read_conll, to_iob2

SENTENCE = "anna X I-PER\nsees X O\nrome X I-LOC\n\n"


@pytest.mark.parametrize(
    ("iob1", "iob2"),
    [
        ("I-A I-A O I-A", "B-A I-A O B-A"),
        ("I-A B-A I-A I-B", "B-A B-A I-A B-B"),
        ("B-A I-A O B-B I-B", "B-A I-A O B-B I-B"),
        ("O O", "O O"),
    ],
)
def test_iob1_becomes_iob2(iob1, iob2):
    assert to_iob2(iob1.split()) == iob2.split() == to_iob2(iob2.split())


def test_real_columns_and_line_ends(tmp_path):
    """A no-break space and other Unicode spaces are part of a word."""
    text = "\ufeffEU NNP I-NP I-ORG\r\n. . O O\r\n\r\n\t \r\n-DOCSTART- -X- O O\r\n"
    text += "10\u00a0000\tCD \t I-NP\tI-PER \r\n\u2003a O"
    write_files(tmp_path, {"eng.train": text})
    assert read_conll(tmp_path / "eng.train") == [
        (["EU", "."], ["B-ORG", "O"]),
        (["10\u00a0000", "\u2003a"], ["B-PER", "O"]),
    ]


def test_conlls_files_are_train_validation_and_test(tmp_path):
    files = {"eng.train": SENTENCE * 20, "eng.testa": SENTENCE * 3, "eng.testb": SENTENCE * 4}
    names, splits = load_tagged(write_files(tmp_path, files))
    assert names == ("O", "B-LOC", "B-PER")
    assert {name: len(rows) for name, rows in splits.named().items()} == {"train": 20, "validation": 3, "test": 4}
    assert splits.train[0] == Example(("anna sees rome",), ["B-PER", "O", "B-LOC"])
    splits.require_trainable("task ner")  # one pattern of tags is not one label


def test_without_a_test_file_dev_is_reported_and_not_used_for_selection(tmp_path):
    _, splits = load_tagged(write_files(tmp_path, {"train.txt": SENTENCE * 40, "dev.txt": SENTENCE * 40}))
    assert {name: len(rows) for name, rows in splits.named().items()} == {"train": 38, "validation": 2, "dev": 40}


@pytest.mark.parametrize("named", [True, False])
def test_the_hubs_columns(named, monkeypatch):
    tag = datasets.ClassLabel(names=["O", "B-PER", "I-PER"]) if named else datasets.Value("string")
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(tag)})
    rows = {"tokens": [["Ann", "A b"], ["x"]], "ner_tags": [[1, 2], [0]] if named else [["I-PER", "I-PER"], ["O"]]}
    part = datasets.Dataset.from_dict(rows, features=features)
    asked = []
    loaded = datasets.DatasetDict({"train": part, "validation": part, "test": part})
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or loaded)
    names, splits = load_tagged("hub:someone/names:english")
    assert asked == [("someone/names", "english")] and names == ("O", "B-PER", "I-PER")
    assert splits.reported["test"] == [Example(("Ann A_b",), ["B-PER", "I-PER"]), Example(("x",), ["O"])]


BROKEN = {
    "no data": ({}, None, "--data is required"),
    "no folder": ({}, "/no/such/folder", "no such folder"),
    "no training file": ({"dev.txt": "a O", "test.txt": "a O"}, "", "found dev and test, but train is required"),
    "two of one": ({"train.txt": "a O", "train.conll": "a O"}, "", "train.conll and train.txt both match train"),
    "one column": ({"train.txt": "a O\nb", "dev.txt": "a O"}, "", "train.txt, line 2: one column, 'b'"),
    "no tag": ({"train.txt": "a NN", "dev.txt": "a O"}, "", "train.txt, line 1: the tag 'NN' is not O"),
    "not UTF-8": ({"train.txt": b"a O\n\xe9 O", "dev.txt": "a O"}, "", "train.txt, line 2: not UTF-8"),
    "only O": ({"train.txt": "a O\n\n" * 40, "dev.txt": "a B-X"}, "", "all words of the train split have the tag O"),
    "off line": ({}, "hub:nobody/nothing", "nobody/nothing cannot be read from the Hub"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_data_are_refused_with_their_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    files, data, fragment = BROKEN[case]
    folder = write_files(tmp_path, files)
    assert fragment in refuses(load_tagged, folder if data == "" else data)


def test_an_empty_training_file_is_refused(tmp_path):
    _, splits = load_tagged(write_files(tmp_path, {"train.txt": "", "dev.txt": "a B-X"}))
    assert "the train split is empty" in refuses(splits.require_trainable, "task ner")
