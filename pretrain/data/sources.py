"""`--corpus` to sources: the sample, files, folders, globs and data sets of the Hub."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from hf_tiny_transformer.common.environment import versions
from hf_tiny_transformer.common.errors import UserError, first_line
from hf_tiny_transformer.common.sample import PACKAGE, load_sample
from hf_tiny_transformer.common.tables import FORMATS, TableFile, TextFile, file_format, read_lines

SAMPLE = "sample"
HUB_PREFIX = "hub:"  # downloaded through the cache of `datasets`
STREAM_PREFIX = "hub-stream:"  # read without a download
HUB_ROWS = 100_000  # rows of a downloaded data set in one source
PORTION = 4 * 2**20  # bytes on disk: consecutive smaller sources are prepared together
LAYOUT_LINES = 100_000  # lines that decide how a text file separates its documents
BLANK_SHARE = 0.02  # separating blank lines per line of text from which on they separate documents

Tally = Counter[str]  # facts about the texts that were read, for the log
WRAPPED_SHARE = 0.4  # lines that a sentence continues on the next line, of all lines, in wrapped prose
WRAPPED = "files that look hard-wrapped (put a blank line after each paragraph, or join its lines)"
BY_LINE, BY_BLANK_LINE = "text files with a document in each line", "text files with blank lines between documents"
EMPTY = "rows without text skipped"


@dataclass(frozen=True)
class Source:
    """Texts that can be read as often as needed, each time in the same order.

    `identity` changes whenever the content may have changed; `read` adds facts about the texts to its argument.
    """

    identity: str
    read: Callable[[Tally], Iterator[str]]
    size: int = PORTION


Portion = list[Source]


def open_sources(names: list[str], *, text_field: str, exclude: Path | None = None) -> list[Source]:
    """Find the sources without reading their texts; files in the folder `exclude`, the run's output, are left out.

    Raises:
        UserError: A source does not exist, or its format is unknown.
    """
    sources: list[Source] = []
    for name in names:
        if name == SAMPLE:
            found = versions((PACKAGE,)).get(PACKAGE)  # without the package, reading explains what to do
            sources.append(Source(f"sample {found}", lambda tally: iter(load_sample().documents)))
        elif name.startswith((HUB_PREFIX, STREAM_PREFIX)):
            sources += _hub_sources(name, text_field)
        else:
            sources += [_file_source(path, text_field) for path in _find_files(name, exclude)]
    return sources


def divide(sources: list[Source]) -> list[Portion]:
    """Group consecutive sources into portions of about PORTION bytes or one source: the unit of work of a process.

    The portions do not depend on the number of processes.
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


def _find_files(name: str, exclude: Path | None) -> list[Path]:
    if not name.strip():
        raise UserError(f"--corpus {name!r}: is empty; name a file, a folder, a glob or {SAMPLE}")
    path = Path(name)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [p for p in path.rglob("*") if _is_known(p) and not p.name.startswith(".") and p.is_file()]
    else:
        found = [p for p in _glob(path) if p.is_file()]
    if exclude is not None:
        found = [p for p in found if not p.resolve().is_relative_to(exclude.resolve())]
    if not found and path.is_dir():
        raise UserError(f"--corpus {name}: the folder has no files of the formats {', '.join(FORMATS)}")
    if not found:
        kinds = f"{SAMPLE}, {HUB_PREFIX}NAME, {STREAM_PREFIX}NAME"
        raise UserError(f"--corpus {name}: no such file, folder or glob (other sources: {kinds})")
    return sorted(found)


def _glob(pattern: Path) -> Iterator[Path]:
    """Expand a glob; the leading folders that exist are names, whatever characters they have."""
    parts, root = list(pattern.parts), Path()
    while parts and (root / parts[0]).exists():
        root /= parts.pop(0)
    return (root / found for found in glob.glob(str(Path(*parts)), root_dir=root, recursive=True))


def _is_known(path: Path) -> bool:
    try:
        return bool(file_format(path, FORMATS))
    except UserError:
        return False


def _file_source(path: Path, text_field: str) -> Source:
    read = _read_text if file_format(path, FORMATS, "--corpus") == ".txt" else _read_rows
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {text_field}"
    return Source(identity, partial(read, path, text_field, identity), status.st_size)


def _read_text(path: Path, text_field: str, identity: str, tally: Tally) -> Iterator[str]:
    """Read the documents of a text file, one on each line or separated by blank lines."""
    by_line, wrapped = _layout(path, identity)
    tally[BY_LINE if by_line else BY_BLANK_LINE] += 1
    tally[WRAPPED] += wrapped
    document: list[str] = []
    for _, line in read_lines(path, "--corpus"):
        if line.strip():
            document.append(line)
        if document and (by_line or not line.strip()):
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


@lru_cache(maxsize=10_000)
def _layout(path: Path, identity: str) -> tuple[bool, bool]:
    """Return whether each line of a text file is a document, and whether these look like lines of wrapped prose.

    Blank lines separate documents where they are a substantial share of the lines: a single one somewhere in a long
    file does not.
    """
    lines = [line.strip() for _, line in islice(TextFile(path, "--corpus").lines(), LAYOUT_LINES)]
    texts = sum(map(bool, lines))
    separators = sum(bool(before) and not line for before, line in pairwise(lines)) - (texts > 0 and not lines[-1])
    by_line = separators <= 0 or separators < BLANK_SHARE * texts
    full = 0.7 * max(map(len, lines), default=0)  # a wrapped line has nearly the width of the others
    pairs = ((before, after) for before, after in pairwise(lines) if len(before) > full)
    continued = sum(before[-1:].isalnum() and after[:1].islower() for before, after in pairs)
    return by_line, by_line and texts > 20 and continued > WRAPPED_SHARE * texts


def _read_rows(path: Path, text_field: str, identity: str, tally: Tally) -> Iterator[str]:
    """Read a column of a table file."""
    header = TableFile(path, [], "--corpus").header
    if not header:
        return
    _require_column(str(path), text_field, header)
    table = TableFile(path, [text_field], "--corpus")
    for record in table.checked():
        value = record.values[text_field]
        if not isinstance(value, str | None):
            raise table.refuse(record, f"is {type(value).__name__}, not text", text_field)
        text = _counted(value, tally)
        yield text.replace("\r\n", "\n") if table.format in (".csv", ".tsv") else text


def _require_column(name: str, text_field: str, columns: list[str]) -> None:
    if text_field not in columns:
        raise UserError(f"--corpus {name}: no column {text_field!r}; it has {', '.join(columns)}; use --text-field")


def _hub_sources(name: str, text_field: str) -> list[Source]:
    """Open the train split of a Hub data set.

    Downloaded, about HUB_ROWS rows are a source; streamed, every file is one, and nothing is downloaded as a whole.
    """
    import datasets

    is_streamed = name.startswith(STREAM_PREFIX)
    repository, _, config = name.partition(":")[2].partition(":")
    try:
        builder = datasets.load_dataset_builder(repository, config or None)
        if is_streamed:
            dataset = builder.as_streaming_dataset(split="train")
            columns, count = dataset.column_names or list(next(iter(dataset), {text_field: ""})), dataset.num_shards
        else:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split="train")
            columns, count = dataset.column_names, -(-len(dataset) // HUB_ROWS)
    except Exception as error:  # the Hub client's errors have no common base class
        raise UserError(f"--corpus {name}: cannot be opened ({first_line(error)}); check name and network") from None
    _require_column(name, text_field, columns)
    texts = dataset.select_columns(text_field)
    # commits on the Hub, modification times in a folder
    files = getattr((builder.config.data_files or {}).get("train"), "origin_metadata", None)
    content = hashlib.sha256(repr([builder.hash, builder.config_id, files]).encode()).hexdigest()
    return [
        Source(
            f"{name} {content} {number}/{count} {text_field}",
            partial(_read_dataset, name, texts.shard(num_shards=count, index=number), text_field),
        )
        for number in range(count)
    ]


def _read_dataset(name: str, dataset: Any, text_field: str, tally: Tally) -> Iterator[str]:
    try:
        for batch in dataset.iter(1000):
            for value in batch[text_field]:
                if not isinstance(value, str | None):
                    raise UserError(f"--corpus {name}: column {text_field!r} has {type(value).__name__}, not text")
                yield _counted(value, tally)
    except UserError:
        raise
    except Exception as error:  # of the network or of a damaged file: no common base class either
        raise UserError(f"--corpus {name}: reading failed ({first_line(error)}); try again") from None


def _counted(value: str | None, tally: Tally) -> str:
    if not (value and value.strip()):
        tally[EMPTY] += 1
    return value or ""
