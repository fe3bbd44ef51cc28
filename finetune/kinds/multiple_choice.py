"""Which of several choices goes with a text: the right answer to a question, the likeliest continuation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

from hf_tiny_transformer.cards import THIS_DIRECTORY

from ..baselines import constant, most_alike
from ..checkpoint import Checkpoint
from ..examples import Example, Splits
from ..report import Row
from ..settings import FinetuneSettings
from .base import EncodedSplit, Kind, ModelInput


@dataclass(frozen=True)
class MultipleChoice(Kind):
    """An example's first `shared` texts belong to all of its choices: a context and perhaps a beginning (a question,
    the first words of a sentence). The others are the choices; the label is the index of the right one.

    The model reads each choice by itself, as the pair (context, beginning and choice), and gives it a score; a softmax
    over the scores is the choice (Devlin et al. 2018, section 4.4).
    """

    shared: int = 1
    metric: str = "accuracy"
    metrics: tuple[str, ...] = ("accuracy",)
    main: str = "accuracy"

    auto_class = AutoModelForMultipleChoice
    pipeline_tag = "multiple-choice"
    constant_name = "most frequent place"

    def config_fields(self) -> dict[str, Any]:
        return {}

    def check(self, settings: FinetuneSettings) -> None:
        """Any setting will do."""

    def describe(self) -> str:
        return "choosing among several texts the one that goes with another"

    def pairs(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """What the model reads, for each choice of an example with these texts."""
        context, *beginning = texts[: self.shared]
        return [(context, " ".join([*beginning, choice])) for choice in texts[self.shared :]]

    def usage(self, example: Example, trust: str) -> str:
        context, choices = example.texts[0], [second for _, second in self.pairs(example.texts)]
        return f"""from transformers import AutoModelForMultipleChoice, AutoTokenizer

{THIS_DIRECTORY}
tokenizer = AutoTokenizer.from_pretrained(model_id{trust})
model = AutoModelForMultipleChoice.from_pretrained(model_id{trust})
context, choices = {context!r}, {choices!r}
encoded = tokenizer([context] * len(choices), choices, truncation=True, padding=True, return_tensors="pt")
scores = model(**{{name: values[None] for name, values in encoded.items()}}).logits[0]
print(choices[scores.argmax()])"""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> list[ModelInput]:
        """Each of a row's inputs is a list with an entry per choice; where a pair is too long, its longer half is
        cut."""
        pairs = [self.pairs(example.texts) for example in examples]
        contexts, seconds = zip(*(pair for of_row in pairs for pair in of_row), strict=True)
        encoded = checkpoint.tokenizer(list(contexts), list(seconds), truncation=True, max_length=checkpoint.max_length)
        rows, start = [], 0
        for example, of_row in zip(examples, pairs, strict=True):
            end = start + len(of_row)
            row = {name: values[start:end] for name, values in encoded.items()}
            rows.append(row | {"labels": example.label} if labelled else row)
            start = end
        return rows

    def collator(self, checkpoint: Checkpoint) -> Callable[[list[ModelInput]], dict[str, torch.Tensor]]:
        return DataCollatorForMultipleChoice(checkpoint.tokenizer)

    def decode(self, outputs: np.ndarray, split: EncodedSplit) -> np.ndarray:
        return outputs.argmax(axis=-1)

    def references(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([example.label for example in examples])

    def prediction_columns(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, Sequence]:
        """`label` and `prediction` are indices from 0; `choice` is the predicted one's text, `probability` its."""
        decoded = self.decode(outputs, split)
        probabilities = torch.from_numpy(outputs).double().softmax(dim=-1).numpy()
        return {
            **super().prediction_columns(outputs, split),
            "choice": [e.texts[self.shared + i] for e, i in zip(split.examples, decoded, strict=True)],
            "probability": [f"{row.max():.6f}" for row in probabilities],
        }

    def constant(self, references: np.ndarray) -> int:
        return Counter(references.tolist()).most_common(1)[0][0]

    def baselines(self, splits: Splits) -> list[Row]:
        return [constant(self, splits), most_alike(self, splits)]
