"""A tag for each word of a text: named entities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, PreTrainedConfig

from ..data import OUTSIDE, Example
from . import Answer, Checkpoint, Collator, EncodedSplit, Kind, Outputs, label_fields, label_names, rounded, tokenize

UNLABELLED = -100  # ignored by torch's cross entropy
PUNCTUATION = ".,;:!?()[]{}\"'«»\u2018\u2019\u201c\u201d\u201e\u2026"
_WORD = re.compile(r"[^ \t\r\n]+")  # a no-break space is part of a word, as in `data.conll`
_ENTITY_TAG = re.compile(r"[BIES]-.|O$")


@dataclass(frozen=True)
class Tagging(Kind):
    """An example's label is the list of its words' tags, in IOB2; words are separated by spaces.

    The label of a word is that of its first token. A word without a token is outside.
    """

    label_names: tuple[str, ...]

    metric = "ner"
    metrics = ("f1", "precision", "recall")
    auto_class = AutoModelForTokenClassification
    ending = "ForTokenClassification"
    pipeline_tag = "token-classification"
    needs_fast_tokenizer = True
    fields = ("entities",)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Tagging:
        return cls(label_names(config))

    def config_fields(self) -> dict[str, Any]:
        return label_fields(self.label_names)

    def describe(self) -> str:
        types = sorted({name[2:] for name in self.label_names if name != OUTSIDE})
        return f"named entities ({', '.join(types)})"

    def call(self, example: Example) -> str:
        return super().call(example)[:-2] + ", aggregation_strategy='simple'))"

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> EncodedSplit:
        rows, cut = tokenize(checkpoint, [example.texts[0] for example in examples], return_offsets_mapping=True)
        pieces = [
            [_first_piece(word, offsets) for word in _words(example.texts[0])]
            for example, offsets in zip(examples, [row.pop("offset_mapping") for row in rows], strict=True)
        ]
        if labelled:
            index = {name: i for i, name in enumerate(self.label_names)}
            for row, example, of_row in zip(rows, examples, pieces, strict=True):
                row["labels"] = [UNLABELLED] * len(row["input_ids"])
                for tag, position in zip(example.label, of_row, strict=True):
                    if position is not None:
                        row["labels"][position] = index[tag]
        return EncodedSplit(examples, rows, cut, first_pieces=pieces)

    def collator(self, checkpoint: Checkpoint) -> Collator:
        return DataCollatorForTokenClassification(checkpoint.tokenizer, label_pad_token_id=UNLABELLED)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return (B, T, 2): index and probability of each token's best label; all logits would fill the memory."""
        probability, index = super().outputs(logits).softmax(dim=-1).max(dim=-1)
        return torch.stack([index.float(), probability], dim=-1)

    def decode(self, outputs: Outputs, split: EncodedSplit) -> list[list[str]]:
        return [
            [OUTSIDE if position is None else self.label_names[int(row[position, 0])] for position in pieces]
            for row, pieces in zip(outputs, split.first_pieces, strict=True)
        ]

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        """Return the entities of each text.

        Tags such as B-PER are joined to entities; any other label but O stands for its word. An entity's probability is
        the mean over its words. Its characters exclude punctuation around it.
        """
        iob = all(_ENTITY_TAG.match(name) for name in self.label_names)
        answers: list[Answer] = []
        decoded = zip(self.decode(outputs, split), split.examples, outputs, split.first_pieces, strict=True)
        for tags, example, row, pieces in decoded:
            text, words, entities = example.texts[0], _words(example.texts[0]), []
            spans = get_entities(tags) if iob else [(tag, i, i) for i, tag in enumerate(tags) if tag != OUTSIDE]
            for label, first, last in spans:
                inside = [row[position, 1] for position in pieces[first : last + 1] if position is not None]
                start, end = words[first][0], words[last][1]
                if inner := text[start:end].strip(PUNCTUATION):
                    start = text.index(inner, start)
                    end = start + len(inner)
                place = {"label": label, "start": start, "end": end, "text": text[start:end]}
                entities.append(place | {"probability": rounded(sum(inside) / len(inside))})
            answers.append({"entities": entities})
        return answers

    def predictions(self, outputs: Outputs, split: EncodedSplit, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each word; `index` is its example's."""
        return [
            {"index": index, "word": example.texts[0][start:end], "label": tag, "prediction": predicted}
            for index, (example, tags) in enumerate(zip(split.examples, self.decode(outputs, split), strict=True))
            for (start, end), tag, predicted in zip(_words(example.texts[0]), example.label, tags, strict=True)
        ]


def _words(text: str) -> list[tuple[int, int]]:
    """Return the characters of each word."""
    return [match.span() for match in _WORD.finditer(text)]


def _first_piece(word: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> int | None:
    """Return the first token that has a character of a word; `offsets` are the characters of each token."""
    start, end = word
    return next((i for i, (first, after) in enumerate(offsets) if first < end and after > start), None)
