"""Protects named entities: a word's tag is asked of its first piece, files mean what they say, F1 is conlleval's."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from test_finetune import TOY_FLAGS, bert_config, results_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertForMaskedLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast, pipeline

from finetune.checkpoint import Checkpoint
from finetune.cli import main
from finetune.examples import Example
from finetune.kinds.tagging import Tagging
from finetune.tagged_data import load_tagged, read_conll, to_iob2
from hf_tiny_transformer.cards import run_snippet, snippet

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PEOPLE, PLACES, PLAIN = ["anna", "bert", "clara"], ["rome", "oslo"], ["sees", "and", "in", "goes", "to"]
PIECES = ["##a", "##b", "##s", ".", "-", "'"]
KIND = Tagging(("O", "B-LOC", "B-PER", "I-LOC", "I-PER"))


def wordpiece() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + PEOPLE + PLACES + PLAIN + PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's and ModernBERT's: a word's first piece holds the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(PEOPLE + PLACES + PLAIN)] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


def opened(tokenizer: PreTrainedTokenizerBase, max_length: int = 64) -> Checkpoint:
    return Checkpoint("here", KIND.auto_class, None, tokenizer, max_length)


WORDS = ["Ánna", "bertab", "x-y", "O'rome", "...", "qqq", "romes", "goes."]


@pytest.mark.parametrize("max_length", [64, 9])
def test_labels_stand_where_the_tokenizer_says_that_words_begin(max_length):
    tokenizer = wordpiece()
    tags = [KIND.label_names[i % 5] for i in range(len(WORDS))]
    checkpoint = opened(tokenizer, max_length)
    split = KIND.encode_split([Example((" ".join(WORDS),), tags)], checkpoint)
    expected = tokenizer(WORDS, is_split_into_words=True, truncation=True, max_length=max_length)
    row, word_ids = split.rows[0], expected.word_ids()
    assert row["input_ids"] == expected["input_ids"] and len(word_ids) <= max_length
    first = [word_ids.index(i) if i in word_ids else None for i in range(len(WORDS))]
    assert split.first_pieces == [first] and (None in first) == (max_length == 9)
    labels = {position: KIND.label_names.index(tag) for position, tag in zip(first, tags, strict=True)}
    assert row["labels"] == [labels.get(position, -100) for position in range(len(word_ids))]


def test_a_space_before_a_word_belongs_to_it_in_byte_level_tokenizers():
    tokenizer = byte_level()
    words = ["anna", "zzé", "oslo", "'", "in"]
    split = KIND.encode_split([Example((" ".join(words),), ["O"] * 5)], opened(tokenizer))
    ids = split.rows[0]["input_ids"]
    ends = [*split.first_pieces[0][1:], len(ids)]
    decoded = [tokenizer.decode(ids[start:end]) for start, end in zip(split.first_pieces[0], ends, strict=True)]
    assert [text.strip() for text in decoded] == words


def test_a_word_that_the_tokenizer_drops_is_outside():
    split = KIND.encode_split([Example(("anna \u200b rome",), ["B-PER", "O", "B-LOC"])], opened(wordpiece()))
    assert split.first_pieces == [[1, None, 2]] and split.rows[0]["labels"] == [-100, 2, 1, -100]
    assert KIND.decode(np.full((1, 4), 1), split) == [["B-LOC", "O", "B-LOC"]]


def test_what_is_cut_off_counts_against_the_model():
    tags = ["B-PER", "O", "B-LOC", "I-LOC"]
    split = KIND.encode_split([Example(("anna in rome oslo",), tags)], opened(wordpiece(), max_length=5))
    outputs = np.array([label if label >= 0 else 3 for label in split.rows[0]["labels"]])[None]
    assert KIND.decode(outputs, split) == [["B-PER", "O", "B-LOC", "O"]]
    scores = KIND.scores(outputs, split)
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5}


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


def sentences(count: int, seed: int) -> list[list[tuple[str, str]]]:
    """IOB1; a name of two words now and then; pieces that only the second token tells apart."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        row = []
        for _ in range(draw.integers(1, 4)):
            row.append((str(draw.choice(PLAIN)), "O"))
            names, tag = (PEOPLE, "I-PER") if draw.integers(2) else (PLACES, "I-LOC")
            row += [(f"{draw.choice(names)}{'ab' * draw.integers(2)}", tag) for _ in range(draw.integers(1, 3))]
        found.append(row)
    return found


def write_conll(path: Path, rows) -> Path:
    blocks = ["\n".join(f"{word} X {tag}" for word, tag in row) for row in rows]
    path.write_text("-DOCSTART- X O\n\n" + "\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def names(tmp_path_factory) -> Path:
    """`model/`, and `data/` in CoNLL 2003's own file names."""
    folder = tmp_path_factory.mktemp("names")
    torch.manual_seed(0)
    BertForMaskedLM(bert_config()).save_pretrained(folder / "model")
    wordpiece().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for seed, (name, count) in enumerate({"eng.train": 200, "eng.testa": 30, "eng.testb": 40}.items()):
        write_conll(folder / "data" / name, sentences(count, seed))
    return folder


def command(names: Path, output: Path, *flags: str) -> list[str]:
    places = {"model": names / "model", "task": "ner", "data": names / "data", "output": output, "seeds": 1}
    return [str(word) for name, value in places.items() for word in (f"--{name}", value)] + [*TOY_FLAGS, *flags]


def test_the_command_learns_names_and_writes_a_row_a_word(names, tmp_path):
    assert main(command(names, tmp_path / "out", "--compare")) == 0
    results = results_of(tmp_path / "out")
    assert results["metric"] == "f1" and results["reported_split"] == "test" and results["test"]["mean"] > 0.7
    assert results["data"]["counts"] == {"train": 200, "validation": 30, "test": 40}
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="")))
    truth = sentences(40, 2)
    assert [row["word"] for row in rows] == [word for row in truth for word, _ in row]
    labels, predictions = (
        [[row[column] for row in rows if int(row["index"]) == i] for i in range(40)]
        for column in ("label", "prediction")
    )
    assert labels == [to_iob2([tag for _, tag in row]) for row in truth]
    assert f1_score(labels, predictions) == pytest.approx(results["test"]["mean"])
    baseline = results["comparison"][0]
    frequent = most_frequent([pair for row in sentences(200, 0) for pair in zip(*tagged(row), strict=True)])
    guesses = [[frequent[word] for word, _ in row] for row in truth]
    assert baseline["name"] == "most frequent tag per word"
    assert baseline["test"]["mean"] == pytest.approx(f1_score(labels, guesses))
    found = pipeline("token-classification", model=str(tmp_path / "out"), aggregation_strategy="simple")("sees anna")
    assert [(entity["entity_group"], entity["word"]) for entity in found] == [("PER", "anna")]
    (tmp_path / "in.txt").write_text("in rome\n")
    flags = ["--model", tmp_path / "out", "--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl"]
    assert main(["predict", *map(str, flags)]) == 0
    answer = json.loads((tmp_path / "out.jsonl").read_text())
    assert [(entity["label"], entity["text"]) for entity in answer["entities"]] == [("LOC", "rome")]
    card = (tmp_path / "out" / "README.md").read_text()
    assert run_snippet(snippet(card), tmp_path / "out") == results_of(tmp_path / "out")["snippet_printed"]
    assert "named entities (LOC, PER)" in card


def tagged(row) -> tuple[list[str], list[str]]:
    return [word for word, _ in row], to_iob2([tag for _, tag in row])


def most_frequent(pairs: list[tuple[str, str]]) -> dict[str, str]:
    tags = [tag for _, tag in pairs]
    return {
        word: max(dict.fromkeys(tags), key=lambda tag, word=word: pairs.count((word, tag))) for word, _ in set(pairs)
    }


def test_without_a_test_file_dev_is_reported_and_chooses_nothing(names, tmp_path):
    for name in ("train", "dev"):
        write_conll(tmp_path / f"{name}.txt", sentences(40, 1))
    kind, splits = load_tagged(str(tmp_path))
    assert {name: len(rows) for name, rows in splits.named().items()} == {"train": 38, "validation": 2, "dev": 40}
    assert kind == KIND


@pytest.mark.parametrize("named", [True, False])
def test_the_hubs_columns(named, monkeypatch):
    tags = ["O", "B-PER", "I-PER"]
    tag = datasets.ClassLabel(names=tags) if named else datasets.Value("string")
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(tag)})
    rows = {"tokens": [["Ann", "A b"], ["x"]], "ner_tags": [[1, 2], [0]] if named else [["I-PER", "I-PER"], ["O"]]}
    part = datasets.Dataset.from_dict(rows, features=features)
    asked = []
    loaded = datasets.DatasetDict({"train": part, "validation": part, "test": part})
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or loaded)
    kind, splits = load_tagged("hub:someone/names:english")
    assert asked == [("someone/names", "english")] and kind.label_names == ("O", "B-PER", "I-PER")
    assert splits.reported["test"] == [Example(("Ann A_b",), ["B-PER", "I-PER"]), Example(("x",), ["O"])]


def test_real_columns_and_windows_line_ends(tmp_path):
    text = "\ufeffEU NNP I-NP I-ORG\r\n. . O O\r\n\r\n\r\n-DOCSTART- -X- O O\r\nPeter\tNNP\tI-NP\tI-PER"
    (tmp_path / "eng.train").write_bytes(text.encode())
    assert read_conll(tmp_path / "eng.train") == [(["EU", "."], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]


BROKEN = {
    "no data": ({}, None, "--data is missing"),
    "no folder": ({}, "/no/such/folder", "no such folder"),
    "no training file": ({"dev.txt": "a O", "test.txt": "a O"}, "", "holds dev and test, but needs train"),
    "two of one": ({"train.txt": "a O", "train.conll": "a O"}, "", "train.conll and train.txt are both for train"),
    "one column": ({"train.txt": "a O\nb", "dev.txt": "a O"}, "", "train.txt, line 2: one column, 'b'"),
    "no tag": ({"train.txt": "a NN", "dev.txt": "a O"}, "", "train.txt, line 1: the tag 'NN' is not O"),
    "no UTF-8": ({"train.txt": b"a O\n\xe9 O", "dev.txt": "a O"}, "", "train.txt, line 2: not UTF-8"),
    "nothing": ({"train.txt": "", "dev.txt": "a O"}, "", "the train split is empty"),
    "one tag": ({"train.txt": "a O\n\n" * 40, "dev.txt": "a O"}, "", "one label"),
    "off line": ({}, "hub:nobody/nothing", "--data hub:nobody/nothing: can't be read from the Hub"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_ends_in_one_line(name, names, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    files, data, fragment = BROKEN[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = ["--model", names / "model", "--task", "ner", "--output", tmp_path / "out", "--seeds", 1]
    flags += [] if data is None else ["--data", data or tmp_path]
    assert main([*map(str, flags)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and fragment in captured.err
    assert captured.out == "" and sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("flags", [["--text", "x"], ["--label_smoothing", "0.1"], ["--submission"]])
def test_flags_without_a_use_are_refused(flags, names, tmp_path, capsys):
    assert main(command(names, tmp_path / "out", *flags)) == 2
    assert flags[0] in capsys.readouterr().err and not (tmp_path / "out").exists()
