"""Labelled texts and their splits, whatever format they were read from."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tiny_transformer.common.errors import UserError, first_line

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 2000
HELD_OUT_SEED = 20202
OUTSIDE = "O"  # the tag of a word that is not part of an entity
CHOICES = "choices"  # the texts of which a row has several
SPLIT_NAMES = {"train": ("train",), "dev": ("validation", "valid", "val", "dev", "testa"), "test": ("test", "testb")}


@dataclass(frozen=True)
class Example:
    """One row: a text per text column of the task, and a label (serialisable as JSON) of the kind's type."""

    texts: tuple[str, ...]
    label: Any


# Splits a training set into (training rows, validation rows).
HoldOut = Callable[[Sequence[Example]], tuple[list[Example], list[Example]]]


@dataclass(frozen=True)
class Splits:
    """The rows of a task: `validation` is for model selection, `reported` splits are for the final scores only."""

    train: Sequence[Example]
    validation: Sequence[Example]
    reported: Mapping[str, Sequence[Example]]  # a single figure refers to the first one

    def named(self) -> dict[str, Sequence[Example]]:
        """Return all splits by name."""
        return {"train": self.train, "validation": self.validation, **self.reported}

    def describe(self) -> dict[str, Any]:
        """Return the rows per split, and a sha256 of all texts and labels in order, which identifies the data."""
        digest, counts = hashlib.sha256(), {}
        for name, examples in self.named().items():
            counts[name] = len(examples)
            for example in examples:
                digest.update(json.dumps([name, *example.texts, example.label]).encode() + b"\n")
        return {"counts": counts, "sha256": digest.hexdigest()}

    def require_trainable(self, origin: str) -> None:
        """Check that no split is empty, and that training rows differ in their labels, unless these are positions."""
        for name, examples in self.named().items():
            if not examples:
                raise UserError(f"{origin}: the {name} split is empty; add rows")
        labels = [example.label for example in self.train if not isinstance(example.label, list)]
        if labels and len({json.dumps(label) for label in labels}) < 2:
            raise UserError(f"{origin}: all {len(labels)} training rows have one label; add rows with other labels")


def texts_of(values: dict[str, Any], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the texts of a table's row by name, of which `CHOICES` is a list.

    `columns` has the columns of each text; choices are in several columns, or in one with lists.

    Raises:
        ValueError: A value is not a text or list; its arguments are the problem and the column.
    """
    texts = {}
    for name, of_text in columns.items():
        found = [values[column] for column in of_text]
        if name == CHOICES and len(found) == 1:
            found = found[0]
            if not isinstance(found, list) or len(found) < 2:
                raise ValueError(f"{found!r:.50} is not a list of two choices or more", of_text[0])
        for place, text in enumerate(found):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{text!r:.50} is not a text", of_text[min(place, len(of_text) - 1)])
        texts[name] = found if name == CHOICES else found[0]
    return texts


def hold_out(train: Sequence[Example], groups: Sequence[int] | None = None) -> tuple[list[Example], list[Example]]:
    """Split a training set into (training rows, validation rows), by a fixed seed; a group of rows is never divided."""
    groups = range(len(train)) if groups is None else groups
    order = list(dict.fromkeys(groups))
    random.Random(HELD_OUT_SEED).shuffle(order)
    sizes, wanted = Counter(groups), min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(train))))
    held_out: set[int] = set()
    for group in order:
        if wanted <= 0:
            break
        held_out.add(group)
        wanted -= sizes[group]
    grouped = list(zip(train, groups, strict=True))
    return [e for e, group in grouped if group not in held_out], [e for e, group in grouped if group in held_out]


def find_splits(names: Iterable[str], origin: str) -> dict[str, str]:
    """Return the names of `train` and of `dev`, `test` or both, known by a word in them (eng.testa, dev-v2.0.json)."""
    found: dict[str, str] = {}
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower()))
        split = next((split for split, known in SPLIT_NAMES.items() if words & set(known)), None)
        if split in found:
            raise UserError(f"{origin}: {found[split]} and {name} both match {split}; remove one of them")
        if split is not None:
            found[split] = name
    if "train" not in found or len(found) < 2:
        raise UserError(
            f"{origin}: found {' and '.join(found) or 'no split'}, but train is required, and dev, test or both; "
            "names must contain these words"
        )
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def find_split_files(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Apply `find_splits` to the files of a folder whose names end in `suffix`."""
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; name the one that holds the train, dev and test files")
    names = sorted(path.name for path in folder.glob(f"*{suffix}") if path.is_file())
    return {split: folder / name for split, name in find_splits(names, f"--data {folder}").items()}


def arrange(found: dict[str, list[Example]], hold_out: HoldOut = hold_out) -> Splits:
    """Make dev the validation split; without both dev and test, `hold_out` takes it from the training rows."""
    if len(found) == 3:
        return Splits(found["train"], found["dev"], {"test": found["test"]})
    return Splits(*hold_out(found["train"]), {name: rows for name, rows in found.items() if name != "train"})


def from_hub(read: Callable[..., Any], name: str, *arguments: Any, advice: str, **options: Any) -> Any:
    """Call `read`, a function of `datasets`; a `UserError` with `advice` if there is no such data set or no network."""
    try:
        return read(name, *arguments, **options)
    except Exception as error:  # the Hub's clients raise a dozen unrelated types for "cannot be reached"
        raise UserError(f"{name} cannot be read from the Hub ({first_line(error)}); {advice}") from None
