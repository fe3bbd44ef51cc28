"""Labelled texts and their splits, whatever they come from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_tiny_transformer.runs import UserError

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 2000
HELD_OUT_SEED = 20202


@dataclass(frozen=True)
class Example:
    """`texts` has one entry per text column of the task; what `label` is, the kind of task says (JSON can hold it)."""

    texts: tuple[str, ...]
    label: Any


# (training rows, validation rows) of a training set.
HoldOut = Callable[[Sequence[Example]], tuple[list[Example], list[Example]]]


@dataclass(frozen=True)
class Splits:
    """`validation` serves every choice (epoch, seed, hyperparameter); `reported`, by name, is read only for the final
    scores. Where there are several, the first is the one a single figure stands for."""

    train: Sequence[Example]
    validation: Sequence[Example]
    reported: dict[str, Sequence[Example]]

    @property
    def headline(self) -> str:
        return next(iter(self.reported))

    def named(self) -> dict[str, Sequence[Example]]:
        return {"train": self.train, "validation": self.validation, **self.reported}

    def describe(self) -> dict:
        """Rows per split, and a sha256 over all texts and labels in order: runs with equal ones used equal data."""
        digest = hashlib.sha256()
        for name, examples in self.named().items():
            for example in examples:
                digest.update(json.dumps([name, *example.texts, example.label]).encode() + b"\n")
        counts = {name: len(examples) for name, examples in self.named().items()}
        return {"counts": counts, "sha256": digest.hexdigest()}

    def require_trainable(self, origin: str) -> None:
        """Raises:
        UserError: a split is empty, or the training split holds fewer than two labels.
        """
        for name, examples in self.named().items():
            if not examples:
                raise UserError(f"{origin}: the {name} split is empty; give it more rows")
        if len({json.dumps(example.label) for example in self.train}) < 2:
            raise UserError(f"{origin}: all {len(self.train)} training rows carry one label; give it rows of each")


def hold_out(train: Sequence[Example], groups: Sequence[int] | None = None) -> tuple[list[Example], list[Example]]:
    """(training rows, validation rows): a seeded part of a training set that comes without a validation split. Rows
    of one group stay together; `groups` has the number of each row's, None makes each row its own."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(range(len(train)) if groups is None else groups):
        members.setdefault(group, []).append(row)
    order = list(members)
    random.Random(HELD_OUT_SEED).shuffle(order)
    wanted = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(train))))
    held_out: set[int] = set()
    while order and len(held_out) < wanted:
        held_out.update(members[order.pop(0)])
    return (
        [example for i, example in enumerate(train) if i not in held_out],
        [example for i, example in enumerate(train) if i in held_out],
    )
