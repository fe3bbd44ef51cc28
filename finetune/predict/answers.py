"""What all answers have in common: the texts that a kind of model reads, and running them in batches of like length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from transformers import BatchEncoding

from ..checkpoint import Checkpoint
from ..inference import FinishedModel
from ..kinds.base import ModelInput
from ..model_files import LONGEST

Texts = dict[str, Any]  # a row's texts by name; the choices are a list
Answer = dict[str, Any]


class Answerer(ABC):
    """Answers rows of texts; `fields` are an answer's keys; `cut` counts the rows with a text that was longer than the
    model takes."""

    ending: ClassVar[str]  # of the class's name in config.json
    auto_class: ClassVar[type]
    # The texts of a row, which are flags, too, each with the columns that hold it unless the flag names others; what
    # has none is read only where its flag is given.
    reads: ClassVar[dict[str, tuple[str, ...]]] = {"text": ("text",)}
    default_max_length: ClassVar[int] = LONGEST
    fields: tuple[str, ...]

    def __init__(self, opened: FinishedModel, batch_size: int) -> None:
        self.model, self.tokenizer, self.max_length = opened.model, opened.tokenizer, opened.max_length
        self.source, self.batch_size, self.cut = opened.source, batch_size, 0

    @abstractmethod
    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        """One answer for each row, in order.

        Args:
            rows: each with the same names.
        """

    @property
    def checkpoint(self) -> Checkpoint:
        """As the kinds of task take it."""
        return Checkpoint(self.source, self.auto_class, self.model.config, self.tokenizer, self.max_length)

    def encode(self, *columns: list[str]) -> BatchEncoding:
        """Texts or pairs of them, cut to `max_length`."""
        return self.tokenizer(*columns, truncation=True, max_length=self.max_length)

    def is_cut(self, row: ModelInput, *texts: str) -> bool:
        """Whether `row`, made of one text or two, lacks some of them."""
        full = len(row["input_ids"]) >= self.max_length
        return full and len(self.tokenizer(*texts)["input_ids"]) > self.max_length

    def batches(self, rows: Sequence[ModelInput]) -> Iterator[tuple[list[int], BatchEncoding]]:
        """(which rows, those padded, on the model's device); rows of like length run together."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield chosen, self.tokenizer.pad([rows[i] for i in chosen], return_tensors="pt").to(self.model.device)


def rows_of(encoded: BatchEncoding) -> list[ModelInput]:
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(encoded["input_ids"]))]


def rounded(number: torch.Tensor) -> float:
    """What float32 holds, without the digits that it does not."""
    return float(f"{float(number):.7g}")
