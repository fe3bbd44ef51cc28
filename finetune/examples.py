"""Labelled texts and their splits, whatever they come from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hf_tiny_transformer.runs import UserError


@dataclass(frozen=True)
class Example:
    """`texts` has one entry per text column of the task; `label` indexes the task's `label_names`."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Splits:
    """`validation` serves every choice (epoch, seed, hyperparameter); `reported` is read only for the final scores."""

    train: Sequence[Example]
    validation: Sequence[Example]
    reported: Sequence[Example]
    reported_name: str

    def named(self) -> dict[str, Sequence[Example]]:
        return {"train": self.train, "validation": self.validation, self.reported_name: self.reported}

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
        if len(Counter(example.label for example in self.train)) < 2:
            raise UserError(f"{origin}: all {len(self.train)} training rows carry one label; give it rows of each")
