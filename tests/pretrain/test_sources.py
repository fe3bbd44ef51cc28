"""Protects the way from `--corpus` to texts: formats, delimiters, paths, and one-line errors for bad input."""

import csv
import gzip
import json
import textwrap

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pretraining import command, refused, run

from hf_tiny_transformer.common.errors import UserError
from pretrain.data import sources
from pretrain.data.documents import documents_of, open_corpus
from pretrain.data.sources import BY_BLANK_LINE, BY_LINE, EMPTY, WRAPPED, Source, Tally, divide, open_sources

TEXTS = sorted(["first document", 'second, with "quotes" and, commas', "third\nof two lines", "Größe, 電影, 🎬"])
SENTENCE = "the old pump was replaced because the seal was worn on day {}, and it ran again on day {}."


def read(*names, text_field="text", tally=None, **options):
    return list(documents_of(open_sources([str(n) for n in names], text_field=text_field, **options), tally))


def write_format(path, texts, field="text"):
    name = path.name
    if name.endswith((".txt", ".txt.gz")):
        data = "\n\n".join(texts).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({field: t}) + "\n" for t in texts), encoding="utf-8")
    elif name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["id", field], *([i, t] for i, t in enumerate(texts))])
    else:
        pyarrow.parquet.write_table(pyarrow.table({field: texts}), path)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_texts_and_text_field_names_the_column(name, tmp_path):
    assert read(write_format(tmp_path / name, TEXTS)) == TEXTS
    if ".txt" not in name:
        path = write_format(tmp_path / name, TEXTS, field="body")
        assert read(path, text_field="body") == TEXTS
        with pytest.raises(UserError, match=r"'text'.*body.*--text-field"):
            read(path)


def test_folder_glob_and_file_find_the_same_and_the_output_is_no_corpus(tmp_path):
    (tmp_path / "deep").mkdir()
    write_format(tmp_path / "a.txt", TEXTS[:2])
    write_format(tmp_path / "deep" / "b.jsonl", TEXTS[2:])
    (tmp_path / "notes.md").write_text("not a corpus file")
    assert sorted(read(tmp_path)) == sorted(read(tmp_path / "**" / "*.*l", tmp_path / "a.txt")) == TEXTS
    (tmp_path / "run" / "training").mkdir(parents=True)
    (tmp_path / "run" / "training" / "metrics.jsonl").write_text('{"text": "a metric"}\n')
    assert sorted(read(tmp_path, exclude=tmp_path / "run")) == TEXTS
    assert sorted(read(tmp_path / "**" / "*.jsonl", tmp_path / "a.txt", exclude=tmp_path / "run")) == TEXTS


def test_a_path_that_exists_is_never_a_pattern(tmp_path):
    folder = tmp_path / "path [v2] für"
    folder.mkdir()
    write_format(folder / "reviews [final].csv", TEXTS[:2])
    write_format(folder / "notes #1?.txt", TEXTS[2:])
    assert read(folder / "reviews [final].csv") == TEXTS[:2]
    assert read(folder / "notes #1?.txt") == TEXTS[2:]
    assert read(folder / "*.csv") == TEXTS[:2]
    assert sorted(read(folder)) == sorted(read(folder / "*")) == TEXTS


def lines(count=400, start=0):
    return [SENTENCE.format(i, i * i) for i in range(start, start + count)]


def wrapped(text, width=70):
    return "\n".join(textwrap.wrap(text, width))


LAYOUTS = {
    "one per line": ("\n".join(lines()), 400, True),
    "with one blank line at the end": ("\n".join(lines()) + "\n\n", 400, True),
    "with one blank line in the middle": ("\n".join(lines(200)) + "\n\n" + "\n".join(lines(200, 200)), 400, True),
    "with a byte-order mark, from Windows": ("\ufeff" + "\r\n".join(lines()), 400, True),
    "between blank lines": (
        "\n\n".join(f"{a}\n{b}" for a, b in zip(lines(), lines(400, 400), strict=True)),
        400,
        False,
    ),
    "paragraphs of many lines": ("\n\n".join("\n".join(lines(20, 20 * i)) for i in range(10)), 10, False),
    "hard-wrapped prose": (wrapped(" ".join(lines())), None, True),
    "hard-wrapped paragraphs": ("\n\n".join(wrapped(" ".join(lines(9, 9 * i))) for i in range(30)), 30, False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_blank_lines_separate_documents_only_where_they_are_frequent(layout, encoding, tmp_path):
    text, count, by_line = LAYOUTS[layout]
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    tally = Tally()
    found = read(tmp_path / "a.txt", tally=tally)
    assert count is None or len(found) == count
    assert (tally[BY_LINE], tally[BY_BLANK_LINE]) == (int(by_line), int(not by_line))
    assert tally[WRAPPED] == (layout == "hard-wrapped prose")


def test_delimiters_and_rows_without_text_are_counted(tmp_path):
    for i in range(20):  # twenty files of 20 lines, each with a blank line at its end
        (tmp_path / f"part{i:02}.txt").write_text("\n".join(lines(20, 20 * i)) + "\n\n")
    tally = Tally()
    assert len(read(tmp_path, tally=tally)) == 400
    assert tally == {BY_LINE: 20, WRAPPED: 0}
    (tmp_path / "b.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "d.jsonl").write_text('{"text": null}\n{"text": "a"}\n{"text": ""}\n')
    (tmp_path / "e.csv").write_text("id,text\n1,\n2,b\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["c", None]}), tmp_path / "f.parquet")
    tally.clear()
    assert {"a", "b", "c"} <= set(read(tmp_path, tally=tally))
    assert tally == {BY_LINE: 20, BY_BLANK_LINE: 1, EMPTY: 4, WRAPPED: 0}


BAD_FILES = {
    "latin.txt": (b"one\n\ncaf\xe9\n", r"latin\.txt, line 3: not UTF-8 .*iconv"),
    "binary.txt": (b"\x00\x01\x02" * 100, r"binary\.txt: is binary"),
    "empty.txt": (b"", "has no text"),
    "blank.txt": (b"\n \n\n", "has no text"),
    "empty.csv": (b"", "has no text"),
    "broken.jsonl": (b'{"text": "fine"}\n{"text": "cut of\n', r"broken\.jsonl, line 2: broken JSON"),
    "surrogate.jsonl": (
        b'{"text": "fine"}\n{"text": "half \\ud83d of one"}\n',
        r"surrogate\.jsonl, line 2: .*surrogate",
    ),
    "other.jsonl": (b'{"body": "x"}\n', r"other\.jsonl: no column 'text'; it has body; use --text-field"),
    "number.jsonl": (b'{"text": 7}\n', r"number\.jsonl, line 1, column 'text': is int, not text"),
    "list.jsonl": (b'{"text": "x"}\n[1, 2]\n', r"list\.jsonl, line 2: is not a JSON object"),
    "other.csv": (b"id,body\n1,x\n", r"other\.csv: no column 'text'; it has id, body"),
    "fields.csv": (b"id,text\n1,x,y\n", r"fields\.csv, line 2: 3 fields"),
    "latin.csv": (b"text\ncaf\xe9\n", r"latin\.csv, line 2: not UTF-8"),
    "fake.parquet": (b"not parquet at all", r"fake\.parquet: is not a readable parquet"),
    "cut.txt.gz": (gzip.compress(b"some text\n\n" * 9000)[:60], r"cut\.txt\.gz: .*(damaged|cannot be read)"),
    "fake.txt.gz": (b"plain text", r"fake\.txt\.gz: cannot be read"),
    "slides.pdf": (b"%PDF", r"slides\.pdf: unsupported format; expected \.txt"),
    "one.txt": (b"a single long line", "1 documents are too few.*a document is a line, or ends at a blank line"),
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
    with pytest.raises(UserError, match="the folder has no files"):
        read(tmp_path)
    for empty in ("", " "):
        with pytest.raises(UserError, match="is empty; name a file"):
            read(empty)
    with pytest.raises(UserError, match=r"hub:nobody/nothing: cannot be opened"):
        read("hub:nobody/nothing")


def test_small_files_are_prepared_together(monkeypatch):
    monkeypatch.setattr(sources, "PORTION", 10)
    found = [Source(str(number), iter, size) for number, size in enumerate([0, 3, 4, 5, 100, 1, 1])]
    assert [[source.size for source in portion] for portion in divide(found)] == [[0, 3, 4], [5], [100], [1, 1]]


@pytest.fixture
def data_set(documents, tmp_path, monkeypatch):
    """A folder that `datasets` reads as it reads a data set of the Hub: three files of 100 documents."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "downloaded")
    path = tmp_path / "reviews"
    path.mkdir()
    for number in range(3):
        part = documents[number * 100 : number * 100 + 100]
        (path / f"part-{number}.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in part))
    return path


def texts_of(source):
    return list(source.read(Tally()))


def test_a_streamed_data_set_has_a_source_for_each_of_its_files(data_set, documents, tmp_path):
    streamed = open_sources([f"hub-stream:{data_set}"], text_field="text")
    assert [texts_of(source) for source in streamed] == [documents[i : i + 100] for i in range(0, 300, 100)]
    assert texts_of(streamed[1]) == documents[100:200], "as often as needed"
    assert len({source.identity for source in streamed}) == 3 and len(divide(streamed)) == 3
    assert not list((tmp_path / "downloaded").rglob("*.arrow")), "nothing was downloaded"
    again = open_sources([f"hub-stream:{data_set}"], text_field="text")
    assert [source.identity for source in again] == [source.identity for source in streamed]
    with (data_set / "part-0.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": 1, "text": "One more."}) + "\n")
    changed = open_sources([f"hub-stream:{data_set}"], text_field="text")
    assert {source.identity for source in changed}.isdisjoint(source.identity for source in streamed)


def test_a_downloaded_data_set_is_cut_into_equal_ranges_of_rows(data_set, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HUB_ROWS", 120)
    found = open_sources([f"hub:{data_set}"], text_field="text")
    assert [len(texts_of(source)) for source in found] == [100, 100, 100]
    assert [text for source in found for text in texts_of(source)] == documents
    assert list((tmp_path / "downloaded").rglob("*.arrow"))


def test_a_run_on_a_stream_is_a_run_on_the_files(data_set, tmp_path):
    runs = {}
    for name, corpus in (("files", data_set), ("stream", f"hub-stream:{data_set}")):
        assert run(command(corpus, tmp_path / name, "--max-steps=1")) == 0
        runs[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert runs["files"] == runs["stream"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ": cannot be opened"),
        ('{"body": "x"}\n', "no column 'text'; it has body; use --text-field"),
        ('{"text": 7}\n', "column 'text' has int, not text"),
        ('{"text": "fine"}\n{"text": "cut of', "hub-stream:"),
    ],
)
def test_bad_streams_are_named(content, words, tmp_path, capsys):
    path = tmp_path / "set"
    if content is not None:
        path.mkdir()
        (path / "a.jsonl").write_text(content)
    assert words in refused(capsys, command(f"hub-stream:{path}", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
