"""Protects GLUE's data: official files and the Hub's copy are read alike, splits are stable, bad rows are refused."""

from pathlib import Path

import datasets
import pytest
from data_fixtures import refuses

from finetune.data import Example, Splits, hold_out
from finetune.data.glue import hold_out_sentences, is_present, load_glue, load_test
from finetune.tasks import TASKS, Task

GLUE = {task.glue.folder: task for task in TASKS.values() if task.glue is not None}
MNLI = "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2"
HEADERS = {
    "CoLA": "source\tlabel\tnote\tsentence",  # not in the files
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "MNLI": f"{MNLI}\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
}
RTE_SHA = "664a36bdc2fe6a876bc24c7123cbd3bd1ef7d25dd1fd88c11ea28ac4da029898"
HELD_OUT = [48, 49, 50, 51, 60, 61, 62, 63]
TESTS = {name: "index\t" + "\t".join(task.glue.file_columns) for name, task in GLUE.items()}
TEXTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String"}


def write(path: Path, header: str, labels: list[str], shown: bool = True) -> None:
    """Write rows whose texts hold quotes and other line ends, which are text in GLUE's files."""
    columns, lines = header.lstrip("\ufeff").split("\t"), [header] if shown else []
    for number, label in enumerate(labels):
        cells = {name: f'"word {number}\u2028x {name[-1]}' if name in TEXTS else str(number) for name in columns}
        cells |= {name: label for name in ("label", "Quality", "score", "is_duplicate", "gold_label") if name in cells}
        lines.append("\t".join(cells.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """All nine tasks in the official layout: 40 training rows, 20 in each dev set, 6 or 5 in each test set."""
    root = tmp_path_factory.mktemp("glue")
    for name, task in GLUE.items():
        labels = [*(task.glue.file_labels or ("0.500", "4.250"))] * 20
        for file, count in [("train.tsv", 40), *((part.file, 20) for part in task.glue.dev)]:
            write(root / name / file, HEADERS[name], labels[:count], shown=name != "CoLA")
        for part in task.glue.test_parts:
            (root / name).mkdir(exist_ok=True)
            write((root / name / part.file).resolve(), TESTS[name], [""] * (5 if part.name == "AX" else 6))
    return root


def load(task: Task, data: Path | None) -> Splits:
    return load_glue(task.glue, task.text_columns, None if data is None else str(data))


@pytest.mark.parametrize("name", GLUE)
def test_official_files_are_read_and_split_the_same_every_time(name, glue):
    task = GLUE[name]
    splits = load(task, glue)
    assert splits == load(task, glue / name), "the task's own folder"
    reported = [part.name for part in task.glue.dev]
    assert {name: len(rows) for name, rows in splits.reported.items()} == dict.fromkeys(reported, 20)
    train, validation = task.glue.hold_out([*splits.train, *splits.validation])
    assert len(splits.train) + len(splits.validation) == 40 and len(train) + len(validation) == 40
    first = splits.reported[reported[0]][:3]
    assert [len(example.texts) for example in first] == [len(task.text_columns)] * 3
    assert first[0].texts[0].startswith('"word 0\u2028x')
    expected = [0.5, 4.25] if name == "STS-B" else list(range(len(task.kind.label_names)))
    assert [example.label for example in first][: len(expected)] == expected
    test = load_test(task.glue, task.text_columns, str(glue))
    counts = {"MNLI-m": 6, "MNLI-mm": 6, "AX": 5} if name == "MNLI" else {name: 6}
    assert {part: len(rows) for part, rows in test.items()} == counts
    assert [(index, example.label) for index, example in next(iter(test.values()))][:2] == [("0", None), ("1", None)]
    assert is_present(task.glue, str(glue)) and is_present(task.glue, None) and not is_present(task.glue, "/no")


def test_the_split_and_its_fingerprint_never_change(glue):
    """Results of earlier versions are comparable only if these figures stay."""
    counts = {"train": 38, "validation": 2, "dev": 20}
    assert load(GLUE["RTE"], glue).describe() == {"counts": counts, "sha256": RTE_SHA}
    rows = [Example((f"text {i}",), i % 2) for i in range(100)]
    train, validation = hold_out(rows, groups=[i // 4 for i in range(100)])
    assert [rows.index(row) for row in validation] == HELD_OUT and len(train) == 100 - len(HELD_OUT)


def test_the_hubs_copy_is_read_the_same(glue, monkeypatch):
    task = GLUE["MNLI"]
    whole = load(task, glue)
    parts = {part.hub_split: whole.reported[part.name] for part in task.glue.dev}

    def rows(path: str, config: str, split: str) -> list[dict]:
        assert path == "nyu-mll/glue" and config in ("mnli", "ax")
        examples, names = enumerate(parts.get(split) or [*whole.validation, *whole.train]), task.text_columns
        return [dict(zip(names, e.texts, strict=True)) | {"label": e.label, "idx": i} for i, e in examples]

    monkeypatch.setattr(datasets, "load_dataset", rows)
    loaded = load(task, None)
    assert loaded.reported == whole.reported and len(loaded.validation) == 2
    test = load_test(task.glue, task.text_columns, None)
    assert list(test) == ["MNLI-m", "MNLI-mm", "AX"] and test["AX"][0][0] == "0" and test["AX"][0][1].label is None


def test_qqps_broken_rows_are_skipped_and_counted(glue, tmp_path, capsys):
    content = (glue / "QQP" / "train.tsv").read_text(encoding="utf-8")
    (tmp_path / "train.tsv").write_text(content + "7\tbroken\n", encoding="utf-8")
    (tmp_path / "dev.tsv").write_text((glue / "QQP" / "dev.tsv").read_text(encoding="utf-8"), encoding="utf-8")
    assert load(GLUE["QQP"], tmp_path) == load(GLUE["QQP"], glue)
    assert "skipped 1 broken rows" in capsys.readouterr().err


BROKEN = {
    "no file": ("RTE", None, "train.tsv: no such file"),
    "empty": ("RTE", b"", "line 1: no column 'sentence1'"),
    "no column": ("RTE", b"index\tsentence1\tlabel\n", "line 1: no column 'sentence2'"),
    "fields": ("SST-2", b"sentence\tlabel\na\t1\nb\n", "train.tsv, line 3: 1 fields, but there are 2 columns"),
    "label": ("SST-2", b"sentence\tlabel\na\t2\n", "train.tsv, line 2: label is '2'; expected 0, 1"),
    "score": ("STS-B", b"sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: score is 'nan'; expected a number"),
    "not UTF-8": ("SST-2", b"sentence\tlabel\na\t1\n\xe9\t0\n", "train.tsv, line 3: not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_files_are_refused_with_their_line(case, tmp_path):
    name, content, fragment = BROKEN[case]
    if content is not None:
        (tmp_path / "train.tsv").write_bytes(content)
    assert fragment in refuses(load, GLUE[name], tmp_path)


def test_no_folder_and_no_network_are_explained(monkeypatch):
    assert "--data /no: no such folder" in refuses(load, GLUE["RTE"], Path("/no"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert "nyu-mll/glue cannot be read from the Hub" in refuses(load, GLUE["RTE"], None)


SENTENCES = [f"a dull film number {i} about cat s" for i in range(30)]


def phrases_of(sentence: str) -> list[str]:
    words = sentence.split()
    return [" ".join(words[:3]), " ".join(words[2:5]), " ".join(words[-3:]), " ".join(words[4:5])]


def test_sst2s_validation_is_sentences_and_no_part_of_them_is_trained_on():
    texts = [text for sentence in SENTENCES for text in [*phrases_of(sentence), sentence, sentence]]
    rows = [Example((text,), i % 2) for i, text in enumerate(texts)]
    train, validation = hold_out_sentences(rows)
    assert (train, validation) == hold_out_sentences(rows)
    held_out, trained = [{example.texts[0] for example in part} for part in (validation, train)]
    assert len(held_out) == 3 and held_out <= set(SENTENCES) and not held_out & trained
    for sentence in held_out:
        assert not trained & {"film number " + sentence.split()[4], sentence.split()[4]}
    assert {"a dull film", "about cat s"} <= trained, "parts of other sentences, too"


def test_parts_are_whole_words_and_spaces_do_not_count():
    texts = ["the cats  sit", "the cat", "cats sit", "cat", *(f"other {i}" for i in range(8))]
    _, validation = hold_out_sentences([Example((text,), 0) for text in texts])
    assert {example.texts[0] for example in validation}.isdisjoint({"cats sit", "cat"})
