"""A tag for each word of a text: named entities."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from hf_tiny_transformer.runs import UserError

from ..checkpoint import Checkpoint
from ..examples import Example, Splits
from ..report import Row
from .base import EncodedSplit, Kind, ModelInput, label_fields

OUTSIDE = "O"
UNLABELLED = -100  # torch's cross entropy leaves such positions out


@dataclass(frozen=True)
class TaggedSplit(EncodedSplit):
    """`first_pieces` has, for each word of each example, the position of its first token, or None: the word was cut
    off, or the tokenizer makes nothing of it."""

    first_pieces: list[list[int | None]]


@dataclass(frozen=True)
class Tagging(Kind):
    """An example's text is its words with a space between two; its label is their tags, in IOB2. What is said of a
    word's first piece is said of the word, and a word without one is outside."""

    label_names: tuple[str, ...]
    metric: str = "ner"
    metrics: tuple[str, ...] = ("f1", "precision", "recall")
    main: str = "f1"

    auto_class = AutoModelForTokenClassification
    pipeline_tag = "token-classification"

    def config_fields(self) -> dict[str, Any]:
        return label_fields(self.label_names)

    def describe(self) -> str:
        types = sorted({name[2:] for name in self.label_names if name != OUTSIDE})
        return f"named entities ({', '.join(types)})"

    def call(self, example: Example) -> str:
        return super().call(example)[:-2] + ", aggregation_strategy='simple'))"

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> list[ModelInput]:
        return self._encode(examples, checkpoint, labelled)[0]

    def encode_split(
        self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True
    ) -> TaggedSplit:
        return TaggedSplit(examples, *self._encode(examples, checkpoint, labelled))

    def _encode(
        self, examples: Sequence[Example], checkpoint: Checkpoint, labelled: bool
    ) -> tuple[list[ModelInput], list[list[int | None]]]:
        if not checkpoint.tokenizer.is_fast:
            raise UserError(
                f"--model {checkpoint.source}: its tokenizer does not tell words apart; save a fast one"
                " (tokenizer.json)"
            )
        encoded = checkpoint.tokenizer(
            [example.texts[0] for example in examples],
            truncation=True,
            max_length=checkpoint.max_length,
            return_offsets_mapping=True,
        )
        all_offsets = encoded.pop("offset_mapping")
        rows = [{name: values[i] for name, values in encoded.items()} for i in range(len(examples))]
        first_pieces = [
            _first_pieces(example.texts[0], offsets) for example, offsets in zip(examples, all_offsets, strict=True)
        ]
        if labelled:
            index = {name: i for i, name in enumerate(self.label_names)}
            for row, example, pieces in zip(rows, examples, first_pieces, strict=True):
                row["labels"] = [UNLABELLED] * len(row["input_ids"])
                for tag, position in zip(example.label, pieces, strict=True):
                    if position is not None:
                        row["labels"][position] = index[tag]
        return rows, first_pieces

    def collator(self, checkpoint: Checkpoint) -> Callable[[list[ModelInput]], dict[str, torch.Tensor]]:
        return DataCollatorForTokenClassification(checkpoint.tokenizer, label_pad_token_id=UNLABELLED)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """(B, T) indices of labels: logits of every token would fill the memory."""
        return super().outputs(logits).argmax(dim=-1)

    def decode(self, outputs: np.ndarray, split: TaggedSplit) -> list[list[str]]:
        return [
            [OUTSIDE if position is None else self.label_names[row[position]] for position in pieces]
            for row, pieces in zip(outputs, split.first_pieces, strict=True)
        ]

    def references(self, examples: Sequence[Example]) -> list[list[str]]:
        return [list(example.label) for example in examples]

    def prediction_table(
        self, outputs: np.ndarray, split: TaggedSplit, text_columns: Sequence[str]
    ) -> dict[str, Sequence]:
        """A row for each word; `index` is its example's."""
        rows = [
            (index, word, tag, predicted)
            for index, (example, tags) in enumerate(zip(split.examples, self.decode(outputs, split), strict=True))
            for word, tag, predicted in zip(example.texts[0].split(" "), example.label, tags, strict=True)
        ]
        return dict(zip(("index", "word", "label", "prediction"), zip(*rows, strict=True), strict=True))

    def baselines(self, splits: Splits) -> list[Row]:
        return [self._most_frequent_tag(splits)]

    def _most_frequent_tag(self, splits: Splits) -> Row:
        started = time.perf_counter()
        counts: defaultdict[str, Counter] = defaultdict(Counter)
        for example in splits.train:
            for word, tag in zip(example.texts[0].split(" "), example.label, strict=True):
                counts[word][tag] += 1
        tags = {word: count.most_common(1)[0][0] for word, count in counts.items()}

        def score(examples: Sequence[Example]) -> dict[str, float]:
            predictions = [[tags.get(word, OUTSIDE) for word in e.texts[0].split(" ")] for e in examples]
            return self.score_predictions(predictions, examples)

        reported = {name: score(examples) for name, examples in splits.reported.items()}
        validation = score(splits.validation)[self.main]
        return Row.single("most frequent tag per word", validation, reported, seconds=time.perf_counter() - started)


def _first_pieces(text: str, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each word of `text` the first token that holds a character of it and of no word before; `offsets` (T, 2) are
    the tokens' characters, (0, 0) for special ones. Byte-level tokenizers count the space before a word to it."""
    positions: list[int | None] = []
    start, token = 0, 0
    for word in text.split(" "):
        end = start + len(word)
        while token < len(offsets) and (offsets[token][1] <= start or offsets[token][0] == offsets[token][1]):
            token += 1
        found = token < len(offsets) and offsets[token][0] < end
        positions.append(token if found else None)
        token += found
        start = end + 1
    return positions
