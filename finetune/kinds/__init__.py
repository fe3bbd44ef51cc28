"""The kinds of task: model inputs (`encode`), scores (`scores`) and answers (`answer`); a subclass of `Kind` each."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_tiny_transformer.common.checkpoints import UNLIMITED, load_model, read_config, read_tokenizer, usable_length
from hf_tiny_transformer.common.errors import DivergedError, UserError
from hf_tiny_transformer.common.foreign_code import strip_loaded
from hf_tiny_transformer.publish.card import THIS_DIRECTORY

from .. import metrics
from ..data import Example

ModelInput = dict[str, Any]  # input_ids, attention_mask, ..., labels; not padded; one list per choice, if any
Collator = Callable[[list[ModelInput]], dict[str, torch.Tensor]]
Outputs = Sequence[np.ndarray] | np.ndarray  # one array for each row of a split, padded or not
Answer = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A model to fine-tune, or one that is fine-tuned."""

    source: str  # a directory or Hub id
    auto_class: Any  # opens it for the task
    config: PreTrainedConfig  # with the task's labels and the dropout
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # tokens per text
    trust_remote_code: bool = False

    def build(self, seed: int, *, from_scratch: bool = False, new_head: bool = True) -> PreTrainedModel:
        """Return the model in fp32; `seed` is that of new weights: of the head, or of all with `from_scratch`."""
        return load_model(
            self.source,
            self.auto_class,
            copy.deepcopy(self.config),
            new_head=new_head,
            from_scratch=from_scratch,
            seed=seed,
            trust_remote_code=self.trust_remote_code,
        )


def row_length(row: ModelInput) -> int:
    """Return the tokens of a row in a batch; of several choices, those of the longest."""
    ids = row["input_ids"]
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)


@dataclass(frozen=True)
class Window:
    """The part of an example's long text that a row holds."""

    example: int
    first: int  # the row's first token of that text
    offsets: np.ndarray  # (tokens, 2), the characters of each token of it


@dataclass(frozen=True)
class EncodedSplit:
    """Examples and their model inputs; the last fields are for the kinds that need them to decode."""

    examples: Sequence[Example]
    rows: list[ModelInput]  # one for each example, or several in order (windows of a long document)
    cut: list[bool]  # for each example, whether a text was truncated
    windows: Sequence[Window] = ()  # of each row
    first_pieces: Sequence[list[int | None]] = ()  # of each example, the position of each word's first token, if any
    tokenizer: PreTrainedTokenizerBase | None = None  # decodes what the model generates

    @cached_property
    def by_length(self) -> np.ndarray:
        """Order of the rows in evaluation: by length, so that batches contain little padding."""
        return np.argsort([row_length(row) for row in self.rows], kind="stable")


class Kind(ABC):
    """A kind of task; `metrics` are the reported scores of the module `metric`."""

    metric: str = "accuracy"  # as `finetune.metrics.score` takes it
    metrics: tuple[str, ...] = ("accuracy",)

    auto_class: ClassVar[Any]  # the Auto class that opens the model
    ending: ClassVar[str]  # of the model's class name
    pipeline_tag: ClassVar[str]  # the Hub's name of the task
    has_pipeline: ClassVar[bool] = True  # transformers has a pipeline of that name
    generates: ClassVar[bool] = False  # evaluation lets the model generate; `outputs` then gets token ids
    needs_fast_tokenizer: ClassVar[bool] = False  # which knows the characters of each token
    default_max_length: ClassVar[int] = 128  # in training
    answer_length: ClassVar[int] = UNLIMITED  # the default in prediction
    shortest: ClassVar[int] = 0  # tokens per row
    keeps_length: ClassVar[bool] = False  # the result reads no longer texts than it was evaluated on
    # The texts that prediction reads, each with its default columns; one without is read if its flag is given.
    reads: ClassVar[dict[str, tuple[str, ...]]] = {"text": ("text",)}
    fields: tuple[str, ...] = ("prediction",)  # the keys of an answer

    @property
    def main(self) -> str:
        """Return the score used for model selection."""
        return self.metrics[0]

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Kind:
        """Return the kind that a fine-tuned model's config describes."""
        return cls()

    def config_fields(self) -> dict[str, Any]:
        """Return the fields of the model's config that the task sets."""
        return {}

    @abstractmethod
    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> EncodedSplit:
        """Tokenize at least one example, with or without labels; no row is longer than `checkpoint.max_length`."""

    @abstractmethod
    def decode(self, outputs: Outputs, split: EncodedSplit) -> Any:
        """Return one prediction for each example, as the metric takes it."""

    @abstractmethod
    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        """Return what a user sees for each example: `prediction`, probabilities and the like."""

    @abstractmethod
    def describe(self) -> str:
        """Return what the model does and its labels, for the card, after "a model for"."""

    def references(self, examples: Sequence[Example]) -> Any:
        """Return the labels, as the metric takes them."""
        return [example.label for example in examples]

    def scores(self, outputs: Outputs, split: EncodedSplit) -> dict[str, float]:
        """Return the scores of `outputs`, which are in the order of `split.rows`."""
        return self.score_predictions(self.decode(outputs, split), split.examples)

    def score_predictions(self, predictions: Any, examples: Sequence[Example]) -> dict[str, float]:
        """Return the scores of predictions as `decode` returns them."""
        scores = metrics.score(self.metric, predictions, self.references(examples))
        return {name: scores[name] for name in self.metrics}

    def by_class(self, outputs: Outputs, split: EncodedSplit) -> dict[str, Any] | None:
        """Return the figures of each class, if a text has one."""
        return None

    def collator(self, checkpoint: Checkpoint) -> Collator:
        """Return a function that pads rows to a batch."""
        return DataCollatorWithPadding(checkpoint.tokenizer)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Reduce a batch's output, which may be more than logits (BART, T5), to the tensor (B, ...) that is kept."""
        return (logits[0] if isinstance(logits, tuple) else logits).float()

    def predictions(self, outputs: Outputs, split: EncodedSplit, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of predictions.csv for labelled examples; `columns` names their texts."""
        rows = []
        for index, (example, answer) in enumerate(zip(split.examples, self.answer(outputs, split), strict=True)):
            texts = dict(zip(columns, example.texts, strict=True))
            rows.append({"index": index, **texts, "label": self.spell(example.label), **_flat(answer)})
        return rows

    def spell(self, label: Any) -> Any:
        """Return a label as predictions.csv shows it."""
        return label

    def usage(self, example: Example, trust: str) -> str:
        """Return Python for the card that runs the model on an example; `trust` is put behind the model's name."""
        needed, load = "pipeline", f'pipe = pipeline("{self.pipeline_tag}", model=model_id{trust})'
        if not self.has_pipeline:
            needed = f"{self.auto_class.__name__}, AutoTokenizer"
            load = f"tokenizer = AutoTokenizer.from_pretrained(model_id{trust})\n"
            load += f"model = {self.auto_class.__name__}.from_pretrained(model_id{trust})"
        return f"from transformers import {needed}\n\n{THIS_DIRECTORY}\n{load}\n{self.call(example)}"

    def call(self, example: Example) -> str:
        """Return the end of `usage`, which calls `pipe`, or `model` and `tokenizer`."""
        return f"print(pipe({example.texts[0]!r}))"

    def open(
        self,
        source: str,
        *,
        config: PreTrainedConfig | None = None,
        max_length: int | None = None,
        dropout: float | None = None,
        trust_remote_code: bool = False,
    ) -> Checkpoint:
        """Read config and tokenizer of a model; `Checkpoint.build` reads the weights.

        Args:
            source: A directory or Hub id.
            config: That of a fine-tuned model, which is used as it is; without it the model is to be fine-tuned.
            max_length: Tokens per text; None takes the default, or fewer if the model has fewer positions.
            dropout: For all dropout fields of the config; None keeps them.
            trust_remote_code: Whether the user allowed the model's own code, which only prediction runs.

        Raises:
            UserError: Files are missing, unreadable or inconsistent, or the model cannot do this.
        """
        if max_length is not None and max_length < self.shortest:
            raise UserError(f"--max-length {max_length}: must be at least {self.shortest} for this task")
        default = self.answer_length
        if config is None:
            default = self.default_max_length
            config = read_config(source, trust_remote_code=trust_remote_code, **self.config_fields())
            if type(config).__module__.startswith("transformers_modules."):
                problem = "auto_map in config.json names code of its own, which a fine-tuned model could not carry"
                raise UserError(f"--model {source}: {problem}; name a model of transformers or of this package")
            if type(config) not in self.auto_class._model_mapping:  # register() extends this mapping too
                problem = f"model_type {config.model_type!r} in config.json has no head for this task"
                raise UserError(f"--model {source}: {problem}; name a model that {self.auto_class.__name__} opens")
            strip_loaded(source, config=config)
        tokenizer = read_tokenizer(source, config, trust_remote_code=trust_remote_code)
        if self.needs_fast_tokenizer and not tokenizer.is_fast:
            raise UserError(f"--model {source}: its tokenizer cannot locate tokens in a text; save a fast one")
        for name in vars(config).copy() if dropout is not None else ():
            if "dropout" in name:
                setattr(config, name, dropout)
        length = usable_length(max_length, config, tokenizer, default=default)
        return Checkpoint(source, self.auto_class, config, tokenizer, length, trust_remote_code)


def tokenize(checkpoint: Checkpoint, *columns: Sequence[str], **options: Any) -> tuple[list[ModelInput], list[bool]]:
    """Tokenize texts, or the columns of pairs of texts; return the rows, and for each whether it was truncated."""
    tokenizer, length = checkpoint.tokenizer, checkpoint.max_length
    encoded = tokenizer(*map(list, columns), truncation=True, max_length=length, **options)
    if tokenizer.is_fast:
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
    else:
        cut = [len(ids) > length for ids in tokenizer(*map(list, columns), verbose=False)["input_ids"]]
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(cut))], cut


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """Return a config's fields for named labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def label_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the labels that a config names."""
    names = cast(dict[int, str], config.id2label)  # transformers makes it so when it opens the config
    return tuple(names[index] for index in range(len(names)))


def generate(model: nn.Module, batch: dict[str, torch.Tensor], max_length: int) -> torch.Tensor:
    """Return the token ids (B, T) that a model of a kind that `generates` writes."""
    return model.generate(**batch, max_length=max_length)  # type: ignore[operator]  # these kinds' Auto class has it


def require_finite_outputs(outputs: Any) -> Any:
    """Return a model's outputs for some rows, or raise a DivergedError if a number is not finite."""
    if not all(np.isfinite(output).all() for output in outputs):
        raise DivergedError("the model's output is not finite; name a model whose training did not diverge")
    return outputs


def rounded(number: Any) -> float:
    """Return the digits that float32 holds."""
    return float(f"{float(number):.7g}")


def _flat(answer: Answer) -> dict[str, Any]:
    """Return an answer as columns of a CSV file: lists joined by `|`, a column `p(NAME)` for each probability."""
    columns: dict[str, Any] = {}
    for name, value in answer.items():
        if isinstance(value, dict):
            columns |= {f"p({key})": part for key, part in value.items()}
        else:
            columns[name] = "|".join(value) if isinstance(value, list) else value
    return columns
