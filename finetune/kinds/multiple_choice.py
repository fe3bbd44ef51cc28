"""The right one of several choices: the answer to a question, the likeliest continuation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

from ..data import Example
from . import Answer, Checkpoint, Collator, EncodedSplit, Kind, ModelInput, Outputs, rounded, tokenize


@dataclass(frozen=True)
class MultipleChoice(Kind):
    """The label is the index of the right choice.

    An example's first `shared` texts belong to all choices: a context and perhaps a beginning (a question, the first
    words of a sentence). The others are the choices. The model scores each choice as the pair (context, beginning and
    choice); the softmax over the scores is the prediction (Devlin et al. 2018, section 4.4).
    """

    shared: int = 1

    auto_class = AutoModelForMultipleChoice
    ending = "ForMultipleChoice"
    pipeline_tag = "multiple-choice"
    keeps_length = True
    has_pipeline = False
    reads: ClassVar = {"text": ("text",), "pair": (), "choices": ("choices",)}
    fields = ("prediction", "choice", "probability")

    def describe(self) -> str:
        return "choosing among several texts the one that goes with another"

    def pairs(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """Return what the model reads for each choice of an example with these texts."""
        context, *beginning = texts[: self.shared]
        return [(context, " ".join([*beginning, choice])) for choice in texts[self.shared :]]

    def call(self, example: Example) -> str:
        context, choices = example.texts[0], [second for _, second in self.pairs(example.texts)]
        return f"""context, choices = {context!r}, {choices!r}
encoded = tokenizer([context] * len(choices), choices, truncation=True, padding=True, return_tensors="pt")
scores = model(**{{name: values[None] for name, values in encoded.items()}}).logits[0]
print(choices[scores.argmax()])"""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> EncodedSplit:
        """Tokenize each example as one row whose inputs are lists with one entry per choice."""
        pairs = [self.pairs(example.texts) for example in examples]
        single, cut_pairs = tokenize(checkpoint, *zip(*(pair for of_row in pairs for pair in of_row), strict=True))
        rows: list[ModelInput] = []
        cut, start = [], 0
        for example, of_row in zip(examples, pairs, strict=True):
            choices = slice(start, start := start + len(of_row))
            row = {name: [choice[name] for choice in single[choices]] for name in single[0]}
            rows.append(row | {"labels": example.label} if labelled else row)
            cut.append(any(cut_pairs[choices]))
        return EncodedSplit(examples, rows, cut)

    def collator(self, checkpoint: Checkpoint) -> Collator:
        pad = DataCollatorForMultipleChoice(checkpoint.tokenizer)

        def collate(rows: list[ModelInput]) -> dict[str, torch.Tensor]:
            batch = pad([{"labels": 0} | row for row in rows])
            return {name: values for name, values in batch.items() if name != "labels" or "labels" in rows[0]}

        return collate

    def decode(self, outputs: Outputs, split: EncodedSplit) -> list[int]:
        return [int(row.argmax()) for row in outputs]

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        """Return the index of the most probable choice, from 0, its text and its probability."""
        answers: list[Answer] = []
        for example, row in zip(split.examples, outputs, strict=True):
            probability, index = torch.from_numpy(row).softmax(dim=-1).max(dim=-1)
            choice = {"prediction": int(index), "choice": example.texts[self.shared + int(index)]}
            answers.append(choice | {"probability": rounded(probability)})
        return answers
