"""SOURCES -> documents. A source is `sample`, a file, a folder, a glob, or `hub:NAME[:CONFIG]`."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from hf_tiny_transformer.runs import UserError

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is shorter than a long document

SAMPLE = "sample"
HUB_PREFIX = "hub:"
BINARY_PROBE = 8192  # bytes read to tell text from binary data


@dataclass
class CorpusFacts:
    """What one reading of the corpus found; `fingerprint` identifies the documents, their order and the settings."""

    documents: int = 0
    characters: int = 0
    duplicates: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read as often as needed, in the same order each time, without holding them in memory.

    Exact duplicates are dropped. Which documents are held out for validation depends on their text alone, so that
    adding a file moves no document from one side to the other.
    """

    readers: tuple[Callable[[], Iterator[str]], ...]
    validation_share: float
    facts: CorpusFacts = field(default_factory=CorpusFacts)

    def train(self) -> Iterator[str]:
        """The documents to learn from."""
        return (text for text, held_out in self._read() if not held_out)

    def validation(self) -> Iterator[str]:
        """The held-out documents."""
        return (text for text, held_out in self._read() if held_out)

    def survey(self) -> CorpusFacts:
        """Reads everything once: bad input shows here, before any work is done.

        Raises:
            UserError: a source can't be read, or there is nothing to split.
        """
        digest, held_out_documents = hashlib.sha256(repr(self.validation_share).encode()), 0
        self.facts.documents = self.facts.characters = self.facts.duplicates = 0
        for text, held_out in self._read(self.facts):
            self.facts.documents += 1
            self.facts.characters += len(text)
            held_out_documents += held_out
            digest.update(text.encode() + b"\0")
        if self.facts.documents == 0:
            raise UserError("--corpus: holds no text")
        if held_out_documents in (0, self.facts.documents):
            raise UserError(
                f"--corpus: {self.facts.documents} documents are too few to hold some out for validation; give more "
                "text (in .txt files an empty line ends a document) or a larger --validation_share"
            )
        self.facts.fingerprint = digest.hexdigest()
        return self.facts

    def _read(self, facts: CorpusFacts | None = None) -> Iterator[tuple[str, bool]]:
        seen: set[bytes] = set()
        for reader in self.readers:
            for text in reader():
                text = text.strip()
                if not text:
                    continue
                key = hashlib.blake2b(text.encode(), digest_size=8).digest()
                if key in seen:
                    if facts is not None:
                        facts.duplicates += 1
                    continue
                seen.add(key)
                yield text, int.from_bytes(key, "big") / 2**64 < self.validation_share


def open_corpus(sources: list[str], *, text_field: str, validation_share: float) -> Corpus:
    """Finds the sources; nothing is read yet.

    Raises:
        UserError: a source does not exist, or its kind is unknown.
    """
    readers: list[Callable[[], Iterator[str]]] = []
    for source in sources:
        if source == SAMPLE:
            readers.append(_read_sample)
        elif source.startswith(HUB_PREFIX):
            readers.append(partial(_read_hub, source, text_field))
        else:
            readers.extend(partial(_file_reader(path), path, text_field) for path in _find_files(source))
    return Corpus(tuple(readers), validation_share)


def _find_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in READERS and not p.name.startswith("."))
        if not found:
            raise UserError(f"--corpus {source}: the folder holds no {', '.join(READERS)} file")
        return found
    found = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())
    if not found:
        raise UserError(f"--corpus {source}: no such file, folder or glob (known names: {SAMPLE}, {HUB_PREFIX}NAME)")
    return found


def _kind(path: Path) -> str:
    """The ending that says what is inside; .gz wraps any text kind."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _file_reader(path: Path) -> Callable[[Path, str], Iterator[str]]:
    reader = READERS.get(_kind(path))
    if reader is None:
        raise UserError(f"--corpus {path}: unknown kind of file; known: {', '.join(READERS)}, and .gz of the text ones")
    return reader


def _open_text(path: Path) -> IO[str]:
    """Opens for reading as UTF-8; raises UserError for what is no text."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as probe:
            if b"\0" in probe.read(BINARY_PROBE):
                raise UserError(f"{path}: is binary, not text")
        return opener(path, "rt", encoding="utf-8-sig", newline=None)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends."""
    number = 0
    with _open_text(path) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: not UTF-8 after line {number} (byte {error.object[error.start]: #04x}); "
                "convert it, for example with: iconv -f LATIN1 -t UTF-8"
            ) from None
        except (OSError, EOFError) as error:  # a broken .gz
            raise UserError(f"{path}: damaged after line {number} ({error})") from None


def _read_text(path: Path, text_field: str) -> Iterator[str]:
    """An empty line ends a document. In a file without empty lines every line is one."""
    one_per_line = all(line.strip() for _, line in _lines(path))
    document: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            document.append(line)
        if document and (one_per_line or not line.strip()):
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: broken JSON ({error.msg}); mend or remove the line") from None
        if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
            known = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise UserError(
                f"{path}, line {number}: no text in field {text_field!r} (there is: {known}); use --text-field"
            )
        yield record[text_field]


def _read_csv(path: Path, text_field: str) -> Iterator[str]:
    with _open_text(path) as stream:
        rows = csv.DictReader(stream)
        try:
            if text_field not in (rows.fieldnames or []):
                known = ", ".join(rows.fieldnames or [])
                raise UserError(f"{path}: no column {text_field!r} (there is: {known}); use --text-field")
            for row in rows:
                yield row[text_field] or ""
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 after line {rows.line_num}; convert it first") from None
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: broken CSV ({error})") from None


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            known = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path}: no column {text_field!r} (there is: {known}); use --text-field")
        for batch in file.iter_batches(columns=[text_field]):
            for value in batch.column(0).to_pylist():
                if value is not None and not isinstance(value, str):
                    raise UserError(f"{path}: column {text_field!r} holds {type(value).__name__}, not text")
                yield value or ""
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from None


def _read_sample() -> Iterator[str]:
    from sample import load_sample

    return iter(load_sample().documents)


def _read_hub(source: str, text_field: str) -> Iterator[str]:
    """The train split of a Hub data set, through `datasets`' own cache."""
    import datasets

    name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:  # the Hub client's errors have no common base: offline, no such name, no such config
        raise UserError(f"--corpus {source}: can't be loaded ({str(error).splitlines()[0]})") from None
    if text_field not in dataset.column_names:
        raise UserError(f"--corpus {source}: no column {text_field!r} (there is: {', '.join(dataset.column_names)})")
    return (text or "" for batch in dataset.select_columns(text_field).iter(1000) for text in batch[text_field])


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
