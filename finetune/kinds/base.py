"""What a kind of task has to say: the model, its inputs, its predictions, its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from hf_tiny_transformer.cards import THIS_DIRECTORY
from hf_tiny_transformer.runs import UserError

from .. import metrics
from ..examples import Example, Splits

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..report import Row
    from ..settings import FinetuneSettings

ModelInput = dict[str, Any]  # input_ids, attention_mask, ..., labels; not padded; a list per choice where there are any


def row_length(row: ModelInput) -> int:
    """Tokens that the row takes up in a batch; of several choices, the longest's."""
    ids = row["input_ids"]
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)


@dataclass(frozen=True)
class EncodedSplit:
    """Examples and the model inputs made of them: one for each example, or (long documents) several, in order."""

    examples: Sequence[Example]
    rows: list[ModelInput]

    @cached_property
    def by_length(self) -> np.ndarray:
        """The rows' order in evaluation: neighbours of equal length, so that batches hold hardly any padding."""
        return np.argsort([row_length(row) for row in self.rows], kind="stable")


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """A config's fields for labels by name."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


class Kind(ABC):
    """`metrics`, scores of the module `metric`, are what is reported; `main`, one of them, is what every choice is made
    by."""

    metric: str  # as `finetune.metrics.score` takes it
    metrics: tuple[str, ...]
    main: str

    auto_class: ClassVar[type]  # the Auto class that opens the model
    generates: ClassVar[bool] = False  # evaluation lets the model write; `outputs` then gets token ids
    default_max_length: ClassVar[int] = 128
    pipeline_tag: ClassVar[str]  # the Hub's name of the task, and transformers' of its pipeline where it has one

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """What goes into the model's config: the head's labels and the like."""

    @abstractmethod
    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> list[ModelInput]:
        """Tokenises; no row is longer than `checkpoint.max_length`."""

    @abstractmethod
    def collator(self, checkpoint: Checkpoint) -> Callable[[list[ModelInput]], dict[str, torch.Tensor]]:
        """Pads rows to a batch."""

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """What evaluation keeps of a batch's output (loss taken off): one tensor, (B, ...). Some models return more
        than logits (BART, T5); keeping it all would fill the memory."""
        return (logits[0] if isinstance(logits, tuple) else logits).float()

    @abstractmethod
    def decode(self, outputs: np.ndarray, split: EncodedSplit) -> Any:
        """Predictions, one for each example, of `outputs`, one for each row."""

    @abstractmethod
    def references(self, examples: Sequence[Example]) -> Any:
        """What `decode`'s predictions are held against."""

    def prediction_table(
        self, outputs: np.ndarray, split: EncodedSplit, text_columns: Sequence[str]
    ) -> dict[str, Sequence]:
        """predictions.csv, column by column: a row per example, unless a kind has it otherwise."""
        texts = zip(*(example.texts for example in split.examples), strict=True)
        return {
            "index": range(len(split.examples)),
            **dict(zip(text_columns, texts, strict=True)),
            **self.prediction_columns(outputs, split),
        }

    def prediction_columns(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, Sequence]:
        """`prediction_table`'s columns after the texts, each with an entry per example."""
        return {
            "label": self.references(split.examples),
            "prediction": self.decode(outputs, split),
        }

    @abstractmethod
    def describe(self) -> str:
        """For the model card, after "a model for": what it does and with which labels."""

    def usage(self, example: Example, trust: str) -> str:
        """For the model card: Python that asks the model in its own directory.

        Args:
            trust: what a `from_pretrained` needs behind the name where the model brings code of its own.
        """
        return f"""from transformers import pipeline

{THIS_DIRECTORY}
pipe = pipeline("{self.pipeline_tag}", model=model_id{trust})
{self.call(example)}"""

    def call(self, example: Example) -> str:
        """The line of `usage` that calls `pipe`, the pipeline, on a text."""
        return f"print(pipe({example.texts[0]!r}))"

    def check(self, settings: FinetuneSettings) -> None:
        """Raises:
        UserError: a setting that this kind has no use for.
        """
        if settings.label_smoothing:
            raise UserError("--label_smoothing is for tasks with one label a text; leave it out")

    def baselines(self, splits: Splits) -> list[Row]:
        """Simpler methods on the same splits."""
        return []

    def encode_split(
        self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True
    ) -> EncodedSplit:
        return EncodedSplit(examples, self.encode(examples, checkpoint, labelled=labelled))

    def scores(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, float]:
        """Every metric of `outputs`, which lie in the order of `split.rows`."""
        return self.score_predictions(self.decode(outputs, split), split.examples)

    def score_predictions(self, predictions: Any, examples: Sequence[Example]) -> dict[str, float]:
        scores = metrics.score(self.metric, predictions, self.references(examples))
        return {name: scores[name] for name in self.metrics}
