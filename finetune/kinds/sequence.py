"""One answer for a text or a pair of texts: a label, several labels, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from ..data import Example
from . import Answer, Checkpoint, EncodedSplit, Kind, Outputs, label_fields, label_names, rounded, tokenize

SEPARATOR = "|"  # between the labels of a row that has several


class SequenceKind(Kind):
    """A label for a sequence."""

    auto_class = AutoModelForSequenceClassification
    ending = "ForSequenceClassification"
    pipeline_tag = "text-classification"
    keeps_length = True
    reads: ClassVar = {"text": ("text",), "pair": ()}

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> SequenceKind:
        """Return single label, several labels or regression, by `problem_type`."""
        if config.problem_type == "multi_label_classification":
            return MultiLabel(label_names(config))
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            return Regression()
        return SingleLabel(label_names(config))

    def target(self, label: Any) -> Any:
        """Return `labels` of one row, as the model's loss takes it."""
        return label

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> EncodedSplit:
        rows, cut = tokenize(checkpoint, *zip(*(example.texts for example in examples), strict=True))
        if labelled:
            for row, example in zip(rows, examples, strict=True):
                row["labels"] = self.target(example.label)
        return EncodedSplit(examples, rows, cut)

    def call(self, example: Example) -> str:
        if len(example.texts) == 2:
            return f"print(pipe({{'text': {example.texts[0]!r}, 'text_pair': {example.texts[1]!r}}}))"
        return super().call(example)


@dataclass(frozen=True)
class SingleLabel(SequenceKind):
    """A label is an index into `label_names`."""

    label_names: tuple[str, ...]
    metric: str = "accuracy"
    metrics: tuple[str, ...] = ("accuracy",)
    main: str = "accuracy"
    fields = ("prediction", "probability")

    def selected_by(self, metric: str) -> SingleLabel:
        """Return the same with another score for model selection; accuracy and macro F1 are reported in any case."""
        metrics = dict.fromkeys(("accuracy", "macro_f1", metric))
        return replace(self, metric="classes", metrics=tuple(metrics), main=metric)

    def by_class(self, outputs: Outputs, split: EncodedSplit) -> dict[str, Any]:
        """Return precision, recall, F1 and number of rows of each class, and the confusion matrix (true, predicted)."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        true, predicted = self.references(split.examples), self.decode(outputs, split)
        numbers = range(len(self.label_names))
        figures = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0.0)
        named = dict(zip(("precision", "recall", "f1", "rows"), map(np.ndarray.tolist, figures), strict=True))
        confusion = confusion_matrix(true, predicted, labels=numbers).tolist()
        return {"labels": list(self.label_names), **named, "confusion": confusion}

    def config_fields(self) -> dict[str, Any]:
        return {"problem_type": "single_label_classification"} | label_fields(self.label_names)

    def describe(self) -> str:
        return f"text classification ({', '.join(self.label_names)})"

    def decode(self, outputs: Outputs, split: EncodedSplit) -> np.ndarray:
        return np.asarray(outputs).argmax(axis=-1)

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        probabilities, indices = torch.from_numpy(np.asarray(outputs)).softmax(dim=-1).max(dim=-1)
        found = zip(indices, map(rounded, probabilities), strict=True)
        return [{"prediction": self.label_names[index], "probability": probability} for index, probability in found]

    def spell(self, label: int) -> str:
        return self.label_names[label]


@dataclass(frozen=True)
class MultiLabel(SequenceKind):
    """A label is a tuple of any number of indices into `label_names`."""

    label_names: tuple[str, ...]
    metric = "multilabel"
    metrics = ("micro_f1", "macro_f1", "exact_match")
    fields = ("prediction", "probabilities")

    def config_fields(self) -> dict[str, Any]:
        return {"problem_type": "multi_label_classification"} | label_fields(self.label_names)

    def describe(self) -> str:
        return f"text classification with any number of labels ({', '.join(self.label_names)})"

    def call(self, example: Example) -> str:
        return super().call(example)[:-2] + ", top_k=None))  # the probability of each label"

    def target(self, label: tuple[int, ...]) -> list[float]:
        return [float(index in label) for index in range(len(self.label_names))]

    def references(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([self.target(example.label) for example in examples], dtype=int)

    def decode(self, outputs: Outputs, split: EncodedSplit) -> np.ndarray:
        """Return (N, labels): 1 where the probability is above one half."""
        return (np.asarray(outputs) > 0).astype(int)

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        answers: list[Answer] = []
        for row in torch.from_numpy(np.asarray(outputs)).sigmoid():
            probabilities = dict(zip(self.label_names, map(rounded, row), strict=True))
            predicted = [name for name, probability in probabilities.items() if probability > 0.5]
            answers.append({"prediction": predicted, "probabilities": probabilities})
        return answers

    def spell(self, label: Sequence[int]) -> str:
        return SEPARATOR.join(self.label_names[index] for index in label)


@dataclass(frozen=True)
class Regression(SequenceKind):
    """A label is a number."""

    metric = "glue/stsb"
    metrics = ("pearson", "spearmanr")

    def config_fields(self) -> dict[str, Any]:
        return {"problem_type": "regression"} | label_fields(["score"])

    def describe(self) -> str:
        return "scoring text with a number"

    def call(self, example: Example) -> str:
        return super().call(example)[:-2] + ", function_to_apply='none'))"

    def target(self, label: float) -> float:
        return float(label)

    def decode(self, outputs: Outputs, split: EncodedSplit) -> np.ndarray:
        return np.asarray(outputs)[:, 0].astype(float)

    def score_predictions(self, predictions: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
        """Return the correlations; those of a model that has diverged are 0."""
        if not np.isfinite(predictions).all():
            return dict.fromkeys(self.metrics, 0.0)
        return super().score_predictions(predictions, examples)

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        numbers = [[rounded(number) for number in row] for row in outputs]
        return [{"prediction": row[0] if len(row) == 1 else row} for row in numbers]

    def spell(self, label: float) -> str:
        return f"{label:g}"
