"""Protects the one reader of text and tables: a row is complete or an error with its line, and no row is lost."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.tables import TableFile, file_format, parse_number, read_lines

ROWS = [{"text": 'a "quoted", text', "label": "x"}, {"text": "two\nlines", "label": "ü"}, {"text": "", "label": ""}]
CSV = 'text,label\n"a ""quoted"", text",x\n"two\nlines",ü\n,\n'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path: Path, *columns: str) -> list[dict]:
    return [record.values for record in TableFile(path, columns or None).checked()]


def errors(path: Path, *columns: str) -> list[tuple[int, str | None]]:
    return [(record.line, record.error) for record in TableFile(path, columns or None)]


def refused(path: Path, *columns: str) -> str:
    with pytest.raises(UserError) as caught:
        values(path, *columns)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_every_format_gives_the_same_rows(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    files = [
        write(tmp_path, "a.csv", CSV),
        write(tmp_path, "A.TSV", CSV.replace(",", "\t").replace('""\t text', '"", text')),
        write(tmp_path, "a.jsonl", lines),
        write(tmp_path, "b.jsonl", lines.replace("\n", "\n\n")),
        write(
            tmp_path, "crlf-bom.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").replace("two\r\n", "two\n").encode()
        ),
        write(tmp_path, "le.csv", b"\xff\xfe" + CSV.encode("utf-16-le")),
        write(tmp_path, "be.csv", b"\xfe\xff" + CSV.encode("utf-16-be")),
        write(tmp_path, "a.csv.gz", gzip.compress(CSV.encode())),
        write(tmp_path, "a.jsonl.xz", lzma.compress(lines.encode())),
        parquet,
    ]
    for file in files:
        table = TableFile(file)
        assert table.header == ["text", "label"]
        for _ in range(2):  # a file is read as often as needed
            assert [record.values for record in table.checked()] == ROWS, file
            assert table.position == table.size
        assert values(file, "label") == [{"label": row["label"]} for row in ROWS]


def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    text = "long, " * 100_000
    assert values(write(tmp_path, "a.csv", f'text,label\n"{text}",x\n'))[0]["text"] == text


def test_a_row_knows_its_line(tmp_path):
    assert [record.line for record in TableFile(write(tmp_path, "a.csv", CSV))] == [2, 3, 5]
    assert [record.line for record in TableFile(write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2}'))] == [1, 3]
    text = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\ntwo\r")
    assert [(r.line, r.values["text"]) for r in TableFile(text)] == [(1, "one"), (2, ""), (3, "two")]
    assert list(read_lines(text)) == [(1, "one"), (2, ""), (3, "two")]
    with pytest.raises(UserError, match=r"b\.txt, line 2: not UTF-8 \(byte 0xee\).*iconv"):
        list(read_lines(write(tmp_path, "b.txt", "fine\nNîmes\n".encode("latin1"))))


@pytest.mark.parametrize("quote", ['"unpaired', 'un"paired', '"un"paired'])
def test_an_unpaired_quote_costs_one_row(quote, tmp_path):
    """Not all rows up to the next quote, which is far away or missing."""
    rows = [f"text {i},x" for i in range(40)]
    rows[7], rows[30] = f"{quote},x", '"fine, quoted",y'
    path = write(tmp_path, "a.csv", "text,label\n" + "\n".join(rows) + "\n")
    found = list(TableFile(path))
    assert len(found) >= 39 and found[-1].values == {"text": "text 39", "label": "x"}
    bad = [record for record in found if record.error]
    if quote == 'un"paired':  # a quote inside an unquoted field is text
        assert not bad and found[7].values["text"] == quote
    else:
        assert [record.line for record in bad] == [9] and "broken CSV" in bad[0].error
        assert [record.values["text"] for record in found if record.line == 32] == ["fine, quoted"]
        assert "line 9: broken CSV" in refused(path)


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("text,label\nfine,x\nyes, no,x\n", 3, "3 fields, but the header has 2; quote the text"),
        ("text,label\nfine\n", 2, "1 fields, but the header has 2"),
        (b"text,label\nfine,x\nN\xeemes,x\n", 3, "column 'text': not UTF-8 (byte 0xee); convert the file"),
    ],
)
def test_bad_csv_rows_are_named(content, line, problem, tmp_path):
    path = write(tmp_path, "a.csv", content)
    assert f"line {line}: {problem}" in refused(path)
    assert [number for number, error in errors(path) if error] == [line]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"text": "half \\ud83d"}', "holds half of a surrogate pair (\\ud83d)"),
        ('{"text": ["fine", "half \\udc00"]}', "holds half of a surrogate pair"),
        ('{"text": "cut', "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ('["a"]', "is not a JSON object"),
        ("7", "is not a JSON object"),
        ('{"other": "a"}', "no field 'text'; it has other"),
    ],
)
def test_bad_json_rows_are_named(row, problem, tmp_path):
    path = write(tmp_path, "a.jsonl", f'{{"text": "fine"}}\n{row}\n{{"text": null}}\n')
    assert f"line 2: {problem}" in refused(path, "text")
    assert [error is None for _, error in errors(path, "text")] == [True, False, True]


def test_half_a_surrogate_in_another_column_does_no_harm(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "fine", "id": "\\ud83d"}\n')
    assert values(path, "text") == [{"text": "fine"}]


@pytest.mark.parametrize(
    ("name", "content", "columns", "problem"),
    [
        ("a.csv", "text,text\na,b\n", ["text"], "line 1: more than one column 'text'"),
        ("a.csv", "text,label\na,b\n", ["sentence"], "line 1: no column 'sentence'; it has text, label"),
        ("a.csv", "", ["text"], "no column 'text'; it has none"),
        ("a.csv", '"text,label\n' + "a,b\n" * 100_000, [], "line 1: broken header"),
        ("a.csv", b"a\0b", ["text"], "is binary, not text"),
        ("a.txt", "Nîmes".encode("utf-16-le"), [], "is binary, not text"),
        ("a.parquet", "text", [], "is not a readable parquet file"),
        ("a.docx", "text", [], "unsupported format; expected .txt, .csv, .tsv, .jsonl, .parquet"),
        ("a.parquet.gz", "text", [], "unsupported format"),
        ("a.csv.gz", "text,label\na,b\n", [], "cannot be read"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 9000)[:-200], [], "damaged after line"),
        ("a.txt.xz", lzma.compress(bytes(range(32, 127)) * 9000)[:-40], [], "damaged after line"),
    ],
)
def test_unusable_files_are_refused_in_one_line(name, content, columns, problem, tmp_path):
    assert problem in refused(write(tmp_path, name, content), *columns)


def test_missing_files_and_folders_are_refused_with_their_flag(tmp_path):
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(UserError, match=r"^--data .*none.*: no such file"):
            TableFile(tmp_path / name, flag="--data")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv"):
        TableFile(tmp_path / "folder.csv")


def test_a_name_with_the_marks_of_patterns_is_a_name(tmp_path):
    assert values(write(tmp_path, "reviews [final] für #1?.csv", CSV)) == ROWS


def test_formats_and_numbers():
    assert file_format(Path("a.b.CSV.Gz"), [".csv"]) == ".csv"
    assert [parse_number(value) for value in ("1e3", " -2 ", 3, 0.5)] == [1000.0, -2.0, 3.0, 0.5]
    for value in ("nan", "inf", "", "x", None, True, [1], 10**400):
        assert parse_number(value) is None, value


def test_text_in_parquet_that_is_not_utf8_is_refused(tmp_path):
    binary = pyarrow.array([b"\xe9"])
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, binary.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: damaged after row 0"):
        list(TableFile(tmp_path / "p.parquet"))
