"""Which split a file of a folder holds, by its name, and what becomes of the splits that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hf_tiny_transformer.runs import UserError

from .examples import Example, HoldOut, Splits, hold_out

SPLIT_NAMES = {"train": ("train",), "dev": ("validation", "valid", "val", "dev", "testa"), "test": ("test", "testb")}


def split_of(name: str) -> str | None:
    """By a word in a file's or a Hub split's name: train.txt, eng.testa, dev-v2.0.json, validation."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in SPLIT_NAMES.items() if words & set(known)), None)


def find_splits(names: Iterable[str], origin: str) -> dict[str, str]:
    """The name of each split that is there: train, and dev, test or both.

    Raises:
        UserError: a split has two names, or there is nothing to train on or nothing to report.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in found:
            raise UserError(f"{origin}: {found[split]} and {name} are both for {split}; leave one of them there")
        if split is not None:
            found[split] = name
    if "train" not in found or len(found) < 2:
        raise UserError(
            f"{origin}: holds {' and '.join(found) or 'no split'}, but needs train, and dev, test or both; "
            "they are known by these words in their names"
        )
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def find_split_files(folder: Path, suffix: str = "") -> dict[str, Path]:
    """`find_splits` among the files of a folder that end in `suffix`.

    Raises:
        UserError: as `find_splits`, or there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; name the one that holds the train, dev and test files")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name.endswith(suffix))
    return {split: folder / name for split, name in find_splits(names, f"--data {folder}").items()}


def arrange(found: dict[str, list[Example]], hold_out: HoldOut = hold_out) -> Splits:
    """With dev and test, dev serves the choices and test is reported. With one of them, it is reported, and what
    `hold_out` takes of the training set serves the choices."""
    if len(found) == 3:
        return Splits(found["train"], found["dev"], {"test": found["test"]})
    train, validation = hold_out(found["train"])
    return Splits(train, validation, {name: rows for name, rows in found.items() if name != "train"})
