"""SOURCES -> readers of documents. A source is `sample`, a file, a folder, a glob, or a data set of the Hub."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from hf_tiny_transformer.runs import UserError

SAMPLE = "sample"
HUB_PREFIX = "hub:"  # through datasets' cache
STREAM_PREFIX = "hub-stream:"  # read from where it lies
ROWS = 100_000  # of a downloaded data set, prepared together
PORTION = 4 * 2**20  # bytes on disk: smaller files that follow one another are prepared together
BINARY_PROBE = 8192  # bytes read to tell text from binary data


@dataclass(frozen=True)
class Source:
    """Something that documents are read from, as often as needed, in the same order each time.

    `identity` is another whenever the content may be: what was found out about a source holds while it stays. `size` is
    in bytes on disk, where it is known.
    """

    identity: str
    read: Callable[[], Iterator[str]]
    size: int = PORTION


Portion = list[Source]


def open_sources(names: list[str], *, text_field: str) -> list[Source]:
    """Finds the sources; no text is read yet.

    Raises:
        UserError: a source does not exist, or its kind is unknown.
    """
    sources: list[Source] = []
    for name in names:
        if name == SAMPLE:
            sources.append(Source(f"sample {_sample_version()}", _read_sample))
        elif name.startswith(HUB_PREFIX):
            sources.extend(_hub_sources(name, text_field))
        elif name.startswith(STREAM_PREFIX):
            sources.extend(_stream_sources(name, text_field))
        else:
            sources.extend(_file_source(path, text_field) for path in find_files(name))
    return sources


def divide(sources: list[Source]) -> list[Portion]:
    """Sources that follow one another, about PORTION bytes or one source each: what one process prepares in one go.

    It does not depend on the number of processes, nor does the order of the documents on how they are divided.
    """
    portions: list[Portion] = []
    room = 0
    for source in sources:
        if not portions or source.size > room:
            portions.append([])
            room = PORTION
        portions[-1].append(source)
        room -= source.size
    return portions


def _file_source(path: Path, text_field: str) -> Source:
    reader, status = _reader_of(path), path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {text_field}"
    return Source(identity, partial(reader, path, text_field), status.st_size)


def find_files(source: str) -> list[Path]:
    """Raises:
    UserError: nothing is there.
    """
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
        names = f"{SAMPLE}, {HUB_PREFIX}NAME, {STREAM_PREFIX}NAME"
        raise UserError(f"--corpus {source}: no such file, folder or glob (known names: {names})")
    return found


def _kind(path: Path) -> str:
    """The ending that says what is inside; .gz wraps any text kind."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _reader_of(path: Path) -> Callable[[Path, str], Iterator[str]]:
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
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is shorter than a long document
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


def _sample_version() -> str:
    from hf_tiny_transformer.common.sample import PACKAGE

    try:
        return version(PACKAGE)
    except ImportError:
        return "missing"  # reading it says what to do


def _read_sample() -> Iterator[str]:
    from hf_tiny_transformer.common.sample import load_sample

    return iter(load_sample().documents)


def _hub_sources(name: str, text_field: str) -> list[Source]:
    """The train split of a Hub data set, through `datasets`' own cache: one source for every ROWS of it."""
    import datasets

    repository, _, config = name.removeprefix(HUB_PREFIX).partition(":")
    try:
        dataset = datasets.load_dataset(repository, config or None, split="train")
    except Exception as error:  # the Hub client's errors have no common base: offline, no such name, no such config
        raise UserError(f"--corpus {name}: can't be loaded ({_first_line(error)})") from None
    _require_column(name, text_field, dataset.column_names)
    texts = dataset.select_columns(text_field)
    ranges = [range(start, min(start + ROWS, len(texts))) for start in range(0, len(texts), ROWS)]
    return [
        Source(
            f"{name} {dataset._fingerprint} {rows.start}-{rows.stop} {text_field}",
            partial(_read_dataset, name, texts.select(rows), text_field),
        )
        for rows in ranges
    ]


def _stream_sources(name: str, text_field: str) -> list[Source]:
    """The train split of a Hub data set, one source for each of its files: nothing is downloaded as a whole."""
    import datasets

    repository, _, config = name.removeprefix(STREAM_PREFIX).partition(":")
    try:
        builder = datasets.load_dataset_builder(repository, config or None)
        dataset = builder.as_streaming_dataset(split="train")
        columns = dataset.column_names or list(next(iter(dataset), {text_field: ""}))
    except Exception as error:  # as above
        raise UserError(f"--corpus {name}: can't be streamed ({_first_line(error)})") from None
    _require_column(name, text_field, columns)
    files = (builder.config.data_files or {}).get("train")
    # commits on the Hub, times of change in a folder
    content = repr([builder.hash, builder.config_id, getattr(files, "origin_metadata", None)])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    texts, count = dataset.select_columns(text_field), dataset.num_shards
    return [
        Source(
            f"{name} {fingerprint} {number}/{count} {text_field}",
            partial(_read_dataset, name, texts.shard(num_shards=count, index=number), text_field),
        )
        for number in range(count)
    ]


def _require_column(name: str, text_field: str, columns: list[str]) -> None:
    if text_field not in columns:
        raise UserError(f"--corpus {name}: no column {text_field!r} (there is: {', '.join(columns)}); use --text-field")


def _read_dataset(name: str, dataset: Any, text_field: str) -> Iterator[str]:
    batches = dataset.iter(1000)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # of the network, of a broken file: no common base either
            raise UserError(f"--corpus {name}: reading it broke off ({_first_line(error)}); try again") from None
        if batch is None:
            return
        for text in batch[text_field]:
            if text is not None and not isinstance(text, str):
                raise UserError(f"--corpus {name}: column {text_field!r} holds {type(text).__name__}, not text")
            yield text or ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
