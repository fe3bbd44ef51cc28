"""The part of a text that answers a question."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

from hf_tiny_transformer.cards import THIS_DIRECTORY
from hf_tiny_transformer.runs import UserError

from ..checkpoint import Checkpoint
from ..examples import Example
from ..settings import FinetuneSettings
from .base import EncodedSplit, Kind, ModelInput

LONGEST_ANSWER = 30  # tokens, as in transformers' and the original BERT's own scripts
SHORTEST_ROW = 16  # tokens: below it there is hardly room for question and context
IMPOSSIBLE = "handle_impossible_answer"  # a config's field, named after the parameter of transformers' pipeline
NO_ANSWER = 0  # the position of [CLS], which stands for "not in here"


@dataclass(frozen=True)
class Window:
    """A row: what of its example's context it holds. Its tokens `first`, `first + 1`, ... are characters `offsets`
    (tokens, 2) of the context."""

    example: int
    first: int
    offsets: np.ndarray


@dataclass(frozen=True)
class WindowSplit(EncodedSplit):
    """`windows` has an entry for each row."""

    windows: list[Window]


@dataclass(frozen=True)
class Found:
    """An answer: characters `start` to `end` of its context, tokens `first` to `last` (both included) of row `row`.
    Its text is "" where nothing is the answer."""

    text: str
    start: int
    end: int
    row: int
    first: int
    last: int


@dataclass(frozen=True)
class Spans(Kind):
    """An example's texts are question and context; its label is a list of accepted answers, each [first character,
    text], empty where the context does not say. `unanswerable`: the training set has such questions, and the model may
    answer "" (SQuAD 2); its config's `IMPOSSIBLE` keeps that."""

    unanswerable: bool = False
    metric: str = "squad"
    metrics: tuple[str, ...] = ("f1", "exact_match")
    main: str = "f1"

    auto_class = AutoModelForQuestionAnswering
    default_max_length = 384
    pipeline_tag = "question-answering"

    def config_fields(self) -> dict[str, Any]:
        return {IMPOSSIBLE: self.unanswerable}

    def check(self, settings: FinetuneSettings) -> None:
        super().check(settings)
        self.check_length(settings.max_length)

    def check_length(self, max_length: int | None) -> None:
        """Raises:
        UserError: too few tokens for a row.
        """
        if max_length is not None and max_length < SHORTEST_ROW:
            raise UserError(f"--max_length {max_length}: must be at least {SHORTEST_ROW} for this task")

    def describe(self) -> str:
        return "answering questions with a part of a text" + (" or with nothing" if self.unanswerable else "")

    def usage(self, example: Example, trust: str) -> str:
        return f"""from transformers import AutoModelForQuestionAnswering, AutoTokenizer

{THIS_DIRECTORY}
tokenizer = AutoTokenizer.from_pretrained(model_id{trust})
model = AutoModelForQuestionAnswering.from_pretrained(model_id{trust})
encoded = tokenizer({example.texts[0]!r}, {example.texts[1]!r}, truncation=True, return_tensors="pt")
answer = model(**encoded)
print(tokenizer.decode(encoded["input_ids"][0][answer.start_logits.argmax() : answer.end_logits.argmax() + 1]))"""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> list[ModelInput]:
        return self._encode(examples, checkpoint, labelled)[0]

    def encode_split(
        self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True
    ) -> WindowSplit:
        return WindowSplit(examples, *self._encode(examples, checkpoint, labelled))

    def _encode(
        self, examples: Sequence[Example], checkpoint: Checkpoint, labelled: bool
    ) -> tuple[list[ModelInput], list[Window]]:
        """A context longer than a row goes into several, each with the whole question."""
        tokenizer = checkpoint.tokenizer
        if not tokenizer.is_fast:
            raise UserError(
                f"--model {checkpoint.source}: its tokenizer does not know where tokens lie; save a fast one"
                " (tokenizer.json)"
            )
        encoded = tokenizer(
            cut_questions([example.texts[0] for example in examples], checkpoint),
            [example.texts[1] for example in examples],
            truncation="only_second",
            max_length=checkpoint.max_length,
            stride=checkpoint.max_length // 3,  # tokens that neighbouring windows share: 128 of 384, as usual
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows = []
        for i, example in enumerate(encoded.pop("overflow_to_sample_mapping")):
            of_context = np.flatnonzero([part == 1 for part in encoded.sequence_ids(i)])
            first = int(of_context[0]) if len(of_context) else 0
            windows.append(Window(example, first, np.array(encoded["offset_mapping"][i])[of_context].reshape(-1, 2)))
        encoded.pop("offset_mapping")
        rows = [{name: values[i] for name, values in encoded.items()} for i in range(len(windows))]
        if labelled:
            for row, window in zip(rows, windows, strict=True):
                row["start_positions"], row["end_positions"] = _positions(window, examples[window.example].label)
        return rows, windows

    def collator(self, checkpoint: Checkpoint) -> Callable[[list[ModelInput]], dict[str, torch.Tensor]]:
        return DataCollatorWithPadding(checkpoint.tokenizer)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """(B, T, 2): the logits of start and end."""
        return torch.stack(logits[:2], dim=-1).float()

    def decode(self, outputs: np.ndarray, split: WindowSplit) -> list[str]:
        return [found.text for found in self.find(outputs, split)]

    def find(self, outputs: Sequence[np.ndarray], split: WindowSplit) -> list[Found]:
        """The best span over all of an example's windows, or "" where nothing is likelier still; `outputs` has a
        (T, 2) for each row, padding behind it or not."""
        best = [(-np.inf, Found("", 0, 0, 0, NO_ANSWER, NO_ANSWER))] * len(split.examples)
        nothing = [(np.inf, best[0][1])] * len(split.examples)
        for row, (logits, window) in enumerate(zip(outputs, split.windows, strict=True)):
            i = window.example
            empty = float(logits[NO_ANSWER].sum()), Found("", 0, 0, row, NO_ANSWER, NO_ANSWER)
            nothing[i] = min(nothing[i], empty, key=lambda pair: pair[0])
            if not len(window.offsets):
                continue
            score, first, last = best_span(logits[window.first :][: len(window.offsets)])
            if score > best[i][0]:
                start, end = int(window.offsets[first][0]), int(window.offsets[last][1])
                whole = split.examples[i].texts[1][start:end]
                text = whole.strip()  # byte-level tokenizers count the space before a word to it
                start += len(whole) - len(whole.lstrip())
                found = Found(text, start, start + len(text), row, window.first + first, window.first + last)
                best[i] = (score, found)
        return [
            none if score == -np.inf or (self.unanswerable and least > score) else found
            for (score, found), (least, none) in zip(best, nothing, strict=True)
        ]

    def prediction_columns(self, outputs: np.ndarray, split: WindowSplit) -> dict[str, Sequence]:
        """`label` is JSON: a list of the accepted answers."""
        return {
            "label": [json.dumps(accepted, ensure_ascii=False) for accepted in self.references(split.examples)],
            "prediction": self.decode(outputs, split),
        }

    def references(self, examples: Sequence[Example]) -> list[list[str]]:
        return [[text for _, text in example.label] for example in examples]


def best_span(logits: np.ndarray) -> tuple[float, int, int]:
    """(score, first, last token) of the span with the largest sum of start and end logits (T, 2) among those of at
    most `LONGEST_ANSWER` tokens."""
    scores = logits[:, None, 0] + logits[None, :, 1]
    length = np.arange(len(logits))[None, :] - np.arange(len(logits))[:, None]  # less one
    allowed = (length >= 0) & (length < LONGEST_ANSWER)
    start, end = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    return float(scores[start, end]), int(start), int(end)


def _positions(window: Window, accepted: Sequence[tuple[int, str]]) -> tuple[int, int]:
    """(first, last token) of the first accepted answer, `NO_ANSWER` twice where the window does not hold all of it."""
    for start, text in accepted[:1]:
        end = start + len(text)
        inside = np.flatnonzero((window.offsets[:, 1] > start) & (window.offsets[:, 0] < end))
        if len(inside) and window.offsets[0][0] <= start and window.offsets[-1][1] >= end:
            return window.first + int(inside[0]), window.first + int(inside[-1])
    return NO_ANSWER, NO_ANSWER


def cut_questions(questions: list[str], checkpoint: Checkpoint) -> list[str]:
    """Questions cut to half of a row, so that any context fits in windows beside them."""
    encoded = checkpoint.tokenizer(
        questions,
        add_special_tokens=False,
        truncation=True,
        max_length=max(1, checkpoint.max_length // 2 - 3),
        return_offsets_mapping=True,
    )
    return [
        question[: offsets[-1][1]] if offsets else question
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]
