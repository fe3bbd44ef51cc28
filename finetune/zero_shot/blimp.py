"""BLiMP's minimal pairs (Warstadt et al. 2020): 67 files of 1,000, from a folder or from the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from hf_tiny_transformer.runs import UserError

HUB_PATH = "nyu-mll/blimp"
FILES = 67
_FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term")


@dataclass(frozen=True)
class Paradigm:
    """One file: `pairs` of a sentence that is grammatical and one that is not; `origin` names it in messages."""

    name: str
    field: str
    term: str
    pairs: Sequence[tuple[str, str]]
    origin: str


def load_blimp(data: str | None) -> list[Paradigm]:
    """All paradigms, in alphabetical order.

    Args:
        data: folder of BLiMP's .jsonl files; None reads the Hub's copy.

    Raises:
        UserError: a file is missing or wrong, or the Hub can't be reached.
    """
    return _from_hub() if data is None else _from_folder(Path(data))


def fingerprint(paradigms: Iterable[Paradigm]) -> str:
    """sha256 over all names and sentences in order: runs with equal ones scored equal data."""
    digest = hashlib.sha256()
    for paradigm in paradigms:
        digest.update(json.dumps([paradigm.name, paradigm.pairs]).encode() + b"\n")
    return digest.hexdigest()


def _from_folder(folder: Path) -> list[Paradigm]:
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; name the one that holds BLiMP's .jsonl files")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"--data {folder}: holds no .jsonl file; name the folder of BLiMP's {FILES} files")
    return [_paradigm(file.stem, _read_rows(file), str(file)) for file in files]


def _read_rows(file: Path) -> list[dict]:
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}); check the path and its permissions") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: broken JSON ({error.msg}); copy the file again") from None
        rows.append(row if isinstance(row, dict) else {})
    return rows


def _from_hub() -> list[Paradigm]:
    try:
        names = sorted(datasets.get_dataset_config_names(HUB_PATH))
        return [_paradigm(name, datasets.load_dataset(HUB_PATH, name, split="train"), HUB_PATH) for name in names]
    except UserError:
        raise
    except Exception as error:  # the Hub's clients raise a dozen unrelated types for "can't be reached"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{HUB_PATH} can't be read from the Hub ({reason}); go online, or give --data the folder of BLiMP's "
            f"{FILES} .jsonl files"
        ) from None


def _paradigm(name: str, rows: Iterable[dict], origin: str) -> Paradigm:
    pairs, field, term = [], "", ""
    for number, row in enumerate(rows, start=1):
        for key in _FIELDS:
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError(
                    f"{origin}, line {number}: no text in field {key!r}; BLiMP's files have it on each line"
                )
        pairs.append((row["sentence_good"], row["sentence_bad"]))
        field, term = row["field"].replace("/", "_"), row["linguistics_term"]  # some files say syntax/semantics
    return Paradigm(name, field, term, pairs, origin)
