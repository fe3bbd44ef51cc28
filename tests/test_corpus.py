"""Protects the way from files to documents: formats, duplicates, a stable held-out split, clear words for bad input."""

import csv
import gzip
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from hf_tiny_transformer.runs import UserError
from pretrain import survey
from pretrain.corpus import open_corpus
from pretrain.packing import open_packed, write_packed
from pretrain.readers import open_sources
from pretrain.tokenizer import train_tokenizer


def read(*names, text_field="text"):
    return sorted(survey.documents_of(open_sources([str(name) for name in names], text_field=text_field)))


TEXTS = sorted(["first document", 'second, with "quotes" and, commas', "third\nof two lines", "Größe, 電影, 🎬"])


def write_format(path, texts, field="text"):
    name = path.name
    if name.endswith((".txt", ".txt.gz")):
        data = "\n\n".join(texts).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({field: t}) + "\n" for t in texts), encoding="utf-8")
    elif name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([["id", field], *([i, t] for i, t in enumerate(texts))])
    else:
        pyarrow.parquet.write_table(pyarrow.table({field: texts}), path)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_documents(name, tmp_path):
    assert read(write_format(tmp_path / name, TEXTS)) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_text_field_names_the_column(name, tmp_path):
    path = write_format(tmp_path / name, TEXTS, field="body")
    assert read(path, text_field="body") == TEXTS
    with pytest.raises(UserError, match=r"'text'.*body.*--text-field"):
        read(path)


def test_folder_glob_and_file_find_the_same(tmp_path):
    (tmp_path / "deep").mkdir()
    write_format(tmp_path / "a.txt", TEXTS[:2])
    write_format(tmp_path / "deep" / "b.jsonl", TEXTS[2:])
    (tmp_path / "notes.md").write_text("not a corpus file")
    assert read(tmp_path) == read(tmp_path / "**" / "*.*l", tmp_path / "a.txt") == TEXTS


def test_a_text_file_without_empty_lines_has_a_document_on_each_line(tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\n")  # with a byte order mark, from Windows
    assert read(tmp_path / "lines.txt") == ["one", "three", "two"]


def test_duplicates_are_dropped_and_counted(tmp_path):
    write_format(tmp_path / "a.txt", [f"document {i % 50}" for i in range(200)])
    corpus = open_corpus([str(tmp_path / "a.txt")], text_field="text", validation_share=0.2)
    assert (corpus.facts.documents, corpus.facts.duplicates) == (50, 150)
    kept = sorted([*corpus.train(), *corpus.validation()])
    assert kept == sorted({f"document {i}" for i in range(50)})
    assert corpus.facts.characters == sum(map(len, kept))


def test_duplicates_are_found_wherever_they_lie(tmp_path, monkeypatch):
    """In chunks and comparisons much smaller than the corpus, the first of equal documents stays."""
    monkeypatch.setattr(survey, "CHUNK", 7)
    monkeypatch.setattr(survey, "PART", 16)
    texts = [f"document {i * i % 211}" for i in range(500)]
    write_format(tmp_path / "a.txt", texts)
    corpus = open_corpus([str(tmp_path / "a.txt")], text_field="text", validation_share=0.2)
    held_out = list(corpus.validation())
    assert [text for text in dict.fromkeys(texts) if text not in held_out] == list(corpus.train())
    assert corpus.facts.documents == len(set(texts)) == len(held_out) + len(list(corpus.train()))
    assert corpus.facts.duplicates == 500 - len(set(texts))


def test_a_corpus_is_surveyed_again_only_when_it_changed(tmp_path, monkeypatch):
    path = write_format(tmp_path / "a.txt", [f"document {i}" for i in range(100)])

    def fingerprint():
        return open_corpus([str(path)], text_field="text", validation_share=0.2).facts.fingerprint

    first = fingerprint()
    with monkeypatch.context() as patched:
        patched.setattr(survey, "_survey", None)  # would fail if it were called
        assert fingerprint() == first
    write_format(path, [f"document {i}" for i in range(99)] + ["another one"])
    assert fingerprint() != first


def test_the_split_depends_on_each_document_alone(tmp_path):
    texts = [f"document {i}" for i in range(400)]
    write_format(tmp_path / "a.txt", texts)
    write_format(tmp_path / "b.txt", [f"another {i}" for i in range(100)])
    alone = open_corpus([str(tmp_path / "a.txt")], text_field="text", validation_share=0.1)
    held_out = set(alone.validation())
    assert 20 < len(held_out) < 60
    assert held_out.isdisjoint(alone.train())
    both = open_corpus([str(tmp_path / "b.txt"), str(tmp_path / "a.txt")], text_field="text", validation_share=0.1)
    assert held_out <= set(both.validation())
    assert held_out.isdisjoint(both.train())


BAD_FILES = {
    "latin.txt": (b"one\n\ncaf\xe9\n", r"latin\.txt: not UTF-8 .*iconv"),
    "binary.txt": (b"\x00\x01\x02" * 100, r"binary\.txt: is binary"),
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b"\n \n\n", "holds no text"),
    "broken.jsonl": (b'{"text": "fine"}\n{"text": "cut of\n', r"broken\.jsonl, line 2: broken JSON"),
    "other.jsonl": (b'{"body": "x"}\n', r"other\.jsonl, line 1: no text in field 'text' \(there is: body\)"),
    "number.jsonl": (b'{"text": 7}\n', r"number\.jsonl, line 1: no text"),
    "list.jsonl": (b"[1, 2]\n", r"list\.jsonl, line 1: no text"),
    "other.csv": (b"id,body\n1,x\n", r"other\.csv: no column 'text' \(there is: id, body\)"),
    "latin.csv": (b"text\ncaf\xe9\n", r"latin\.csv: not UTF-8"),
    "fake.parquet": (b"not parquet at all", r"fake\.parquet: not a readable parquet"),
    "cut.txt.gz": (gzip.compress(b"some text\n\n" * 9000)[:60], r"cut\.txt\.gz: damaged"),
    "fake.txt.gz": (b"plain text", r"fake\.txt\.gz: can't be read"),
    "slides.pdf": (b"%PDF", r"slides\.pdf: unknown kind of file; known: \.txt"),
    "one.txt": (b"a single document", "too few to hold some out"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_what_to_do(name, tmp_path):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_corpus([str(tmp_path / name)], text_field="text", validation_share=0.1)


def test_missing_sources_are_named(tmp_path):
    for source in (tmp_path / "nowhere.txt", tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match="no such file, folder or glob"):
            read(source)
    with pytest.raises(UserError, match="the folder holds no"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"hub:nobody/nothing: can't be loaded"):
        read("hub:nobody/nothing")


def test_a_vocabulary_larger_than_the_corpus_allows(documents):
    with pytest.raises(UserError, match=r"vocab_size is 50000, but the corpus allows only \d+ pieces"):
        train_tokenizer(
            lambda: documents, vocab_size=50000, lowercase=True, max_length=64, family="encoder", progress=False
        )


def test_a_corpus_smaller_than_one_block(documents, tmp_path):
    tokenizer = train_tokenizer(
        lambda: documents, vocab_size=120, lowercase=True, max_length=64, family="encoder", progress=False
    )
    write_packed(documents[:1], tokenizer, tmp_path / "x.bin", tmp_path / "shards")
    with pytest.raises(UserError, match="less than one block of 4096"):
        open_packed(tmp_path / "x.bin", 120, 2, block_size=4096, what="training")


def test_tokenizer_saves_as_a_fast_one_and_reads_back(documents, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(
        lambda: documents, vocab_size=120, lowercase=True, max_length=64, family="bert", progress=False
    )
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert loaded("A film", "and more")["input_ids"] == tokenizer("A film", "and more")["input_ids"]
    assert set(loaded("A film", "and more")["token_type_ids"]) == {0, 1}
    assert loaded.model_max_length == 64
    assert loaded.decode(loaded("the music is lovely")["input_ids"], skip_special_tokens=True) == "the music is lovely"


def test_two_processes_train_the_same_tokenizer(corpus_file, tmp_path):
    """The trainer's own numbering follows a hash table that is seeded anew in every process."""
    program = (
        "import sys; from pretrain.corpus import open_corpus; from pretrain.tokenizer import train_tokenizer\n"
        "corpus = open_corpus([sys.argv[1]], text_field='text', validation_share=0.1)\n"
        "tokenizer = train_tokenizer(corpus.train, vocab_size=120, lowercase=True, max_length=64, family='encoder',"
        " progress=False)\n"
        "tokenizer.save_pretrained(sys.argv[2])"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", program, str(corpus_file), str(tmp_path / name)], check=True)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
