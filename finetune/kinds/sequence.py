"""One answer for a text or a pair of texts: a label, several labels, or a number."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from ..baselines import constant, tfidf
from ..checkpoint import Checkpoint
from ..examples import Example, Splits
from ..report import Row
from ..settings import FinetuneSettings
from .base import EncodedSplit, Kind, ModelInput, label_fields

SEPARATOR = "|"  # between the labels of a row that has several


class SequenceKind(Kind):
    """What the three have in common; a subclass says what a label is."""

    auto_class = AutoModelForSequenceClassification
    pipeline_tag = "text-classification"
    constant_name: str
    linear_name: str

    @abstractmethod
    def target(self, label: Any) -> Any:
        """`labels` of one row, as the model's loss takes it."""

    @abstractmethod
    def constant(self, references: np.ndarray) -> Any:
        """The prediction of a model that reads no text, from the training split's references."""

    @abstractmethod
    def linear(self, strength: float) -> Any:
        """A scikit-learn estimator that fits its data the closer the larger `strength` is."""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> list[ModelInput]:
        columns = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
        encoded = checkpoint.tokenizer(*columns, truncation=True, max_length=checkpoint.max_length)
        rows = [{name: values[i] for name, values in encoded.items()} for i in range(len(examples))]
        if labelled:
            for row, example in zip(rows, examples, strict=True):
                row["labels"] = self.target(example.label)
        return rows

    def collator(self, checkpoint: Checkpoint) -> Callable[[list[ModelInput]], dict[str, torch.Tensor]]:
        return DataCollatorWithPadding(checkpoint.tokenizer)

    def call(self, example: Example) -> str:
        if len(example.texts) == 2:
            return f"print(pipe({{'text': {example.texts[0]!r}, 'text_pair': {example.texts[1]!r}}}))"
        return super().call(example)

    def baselines(self, splits: Splits) -> list[Row]:
        return [constant(self, splits), tfidf(self, splits)]


@dataclass(frozen=True)
class SingleLabel(SequenceKind):
    """A label is an index into `label_names`."""

    label_names: tuple[str, ...]
    metric: str = "accuracy"
    metrics: tuple[str, ...] = ("accuracy",)
    main: str = "accuracy"
    constant_name = "majority class"
    linear_name = "logistic regression"

    def config_fields(self) -> dict[str, Any]:
        return {"problem_type": "single_label_classification"} | label_fields(self.label_names)

    def check(self, settings: FinetuneSettings) -> None:
        """Any setting will do."""

    def describe(self) -> str:
        return f"text classification ({', '.join(self.label_names)})"

    def target(self, label: int) -> int:
        return label

    def references(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([example.label for example in examples])

    def decode(self, outputs: np.ndarray, split: EncodedSplit) -> np.ndarray:
        return outputs.argmax(axis=-1)

    def prediction_columns(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, Sequence]:
        """`probability` is that of the prediction."""
        probabilities = torch.from_numpy(outputs).double().softmax(dim=-1).numpy()
        return {
            "label": [self.label_names[example.label] for example in split.examples],
            "prediction": [self.label_names[index] for index in self.decode(outputs, split)],
            "probability": [f"{row.max():.6f}" for row in probabilities],
        }

    def constant(self, references: np.ndarray) -> int:
        return Counter(references.tolist()).most_common(1)[0][0]

    def linear(self, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000)


@dataclass(frozen=True)
class MultiLabel(SequenceKind):
    """A label is a tuple of indices into `label_names`, any number of them."""

    label_names: tuple[str, ...]
    metric: str = "multilabel"
    metrics: tuple[str, ...] = ("micro_f1", "macro_f1", "exact_match")
    main: str = "micro_f1"
    constant_name = "labels of more than half the rows"
    linear_name = "logistic regression per label"

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

    def decode(self, outputs: np.ndarray, split: EncodedSplit) -> np.ndarray:
        return (outputs > 0).astype(int)  # a probability above one half

    def prediction_columns(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, Sequence]:
        """Names joined by `SEPARATOR`, then each label's probability."""
        probabilities = torch.from_numpy(outputs).double().sigmoid().numpy()
        decoded = self.decode(outputs, split)
        return {
            "label": [self._joined(example.label) for example in split.examples],
            "prediction": [self._joined(np.flatnonzero(row)) for row in decoded],
        } | {f"p({name})": [f"{p:.6f}" for p in probabilities[:, i]] for i, name in enumerate(self.label_names)}

    def _joined(self, indices: Sequence[int]) -> str:
        return SEPARATOR.join(self.label_names[index] for index in indices)

    def constant(self, references: np.ndarray) -> np.ndarray:
        return (references.mean(axis=0) > 0.5).astype(int)

    def linear(self, strength: float) -> OneVsRestClassifier:
        return OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000))


@dataclass(frozen=True)
class Regression(SequenceKind):
    """A label is a number."""

    metric: str = "glue/stsb"
    metrics: tuple[str, ...] = ("pearson", "spearmanr")
    main: str = "pearson"
    constant_name = "mean"
    linear_name = "ridge regression"

    def config_fields(self) -> dict[str, Any]:
        return {"problem_type": "regression"} | label_fields(["score"])

    def describe(self) -> str:
        return "scoring text with a number"

    def call(self, example: Example) -> str:
        return super().call(example)[:-2] + ", function_to_apply='none'))"

    def target(self, label: float) -> float:
        return float(label)

    def references(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([example.label for example in examples], dtype=float)

    def decode(self, outputs: np.ndarray, split: EncodedSplit) -> np.ndarray:
        return outputs[:, 0].astype(float)

    def score_predictions(self, predictions: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
        """Of a model that has diverged: 0."""
        if not np.isfinite(predictions).all():
            return dict.fromkeys(self.metrics, 0.0)
        return super().score_predictions(predictions, examples)

    def prediction_columns(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, Sequence]:
        return {
            "label": [f"{example.label:g}" for example in split.examples],
            "prediction": [f"{value:.6f}" for value in self.decode(outputs, split)],
        }

    def constant(self, references: np.ndarray) -> float:
        return float(references.mean())

    def linear(self, strength: float) -> Ridge:
        return Ridge(alpha=1 / strength)
