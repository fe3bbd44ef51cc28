"""The part of a text that answers a question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig

from ..data import Example
from . import Answer, Checkpoint, EncodedSplit, Kind, Outputs, Window, rounded

LONGEST_ANSWER = 30  # tokens, as in the scripts of transformers and of the original BERT
IMPOSSIBLE = "handle_impossible_answer"  # a field of the config, named after the parameter of transformers' pipeline
NO_ANSWER = 0  # the position of [CLS], which means "not in this window"


@dataclass(frozen=True)
class Spans(Kind):
    """An example's texts are question and context.

    Its label is a list of accepted answers, each [first character, text]; it is empty where the context has none. A
    long context is divided into windows, and the best span of all windows is the answer. With `unanswerable`, the
    training set has questions without an answer and the model may answer "" (SQuAD 2); the config records that.
    """

    unanswerable: bool = False

    metric = "squad"
    metrics = ("f1", "exact_match")
    auto_class = AutoModelForQuestionAnswering
    ending = "ForQuestionAnswering"
    pipeline_tag = "question-answering"
    has_pipeline = False  # transformers no longer has it
    needs_fast_tokenizer = True
    default_max_length = 384
    answer_length = 384
    shortest = 16  # fewer leave hardly any room for question and context
    reads: ClassVar = {"question": ("question",), "text": ("context", "text")}
    fields = ("prediction", "start", "end", "probability")

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Spans:
        return cls(unanswerable=bool(getattr(config, IMPOSSIBLE, False)))

    def config_fields(self) -> dict[str, Any]:
        return {IMPOSSIBLE: self.unanswerable}

    def describe(self) -> str:
        return "answering questions with a part of a text" + (" or with nothing" if self.unanswerable else "")

    def call(self, example: Example) -> str:
        return f"""encoded = tokenizer({example.texts[0]!r}, {example.texts[1]!r}, truncation=True, return_tensors="pt")
answer = model(**encoded)
print(tokenizer.decode(encoded["input_ids"][0][answer.start_logits.argmax() : answer.end_logits.argmax() + 1]))"""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> EncodedSplit:
        """Tokenize; a context longer than a row becomes several rows, each with the whole question."""
        questions = [example.texts[0] for example in examples]
        shortened = _shorten(questions, checkpoint)
        encoded = checkpoint.tokenizer(
            *(shortened, [example.texts[1] for example in examples]),
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
        cut = [short != whole for short, whole in zip(shortened, questions, strict=True)]
        return EncodedSplit(examples, rows, cut, windows)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return (B, T, 2): the logits of start and end."""
        return torch.stack(tuple(logits[:2]), dim=-1).float()

    def decode(self, outputs: Outputs, split: EncodedSplit) -> list[str]:
        return [answer["prediction"] for answer in self.answer(outputs, split)]

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        """Return the best span over all windows of each example, or "" where an empty answer has the highest score.

        With it are its characters, and its probability: that of its first token times that of its last. `outputs` has
        (T, 2) for each row, with or without padding at its end.
        """
        best = [(-np.inf, 0, NO_ANSWER, NO_ANSWER)] * len(split.examples)  # score, row, first and last token
        empty = [(np.inf, 0)] * len(split.examples)  # the lowest score of an empty answer, and its row
        for row, (logits, window) in enumerate(zip(outputs, split.windows, strict=True)):
            i = window.example
            empty[i] = min(empty[i], (float(logits[NO_ANSWER].sum()), row))
            if len(window.offsets):
                score, first, last = best_span(logits[window.first :][: len(window.offsets)])
                if score > best[i][0]:
                    best[i] = score, row, window.first + first, window.first + last
        answers: list[Answer] = []
        for example, (score, row, first, last), (least, empty_row) in zip(split.examples, best, empty, strict=True):
            text, place = "", dict[str, int | None](start=None, end=None)
            if score == -np.inf or (self.unanswerable and least > score):
                row, first, last = empty_row, NO_ANSWER, NO_ANSWER
            else:
                window = split.windows[row]
                start, end = int(window.offsets[first - window.first][0]), int(window.offsets[last - window.first][1])
                whole = example.texts[1][start:end]
                text = whole.strip()  # byte-level tokenizers include the space before a word
                start += len(whole) - len(whole.lstrip())
                place = {"start": start, "end": start + len(text)} if text else place
            tokens = len(split.rows[row]["input_ids"])
            begins, ends = torch.from_numpy(outputs[row][:tokens]).softmax(dim=0).unbind(dim=1)
            answers.append({"prediction": text, **place, "probability": rounded(begins[first] * ends[last])})
        return answers

    def references(self, examples: Sequence[Example]) -> list[list[str]]:
        return [[text for _, text in example.label] for example in examples]

    def spell(self, label: Any) -> str:
        return json.dumps([text for _, text in label], ensure_ascii=False)


def best_span(logits: np.ndarray) -> tuple[float, int, int]:
    """Return (score, first, last token) of the best span, by its logits (T, 2) of start and end."""
    scores = logits[:, None, 0] + logits[None, :, 1]
    distance = np.arange(len(logits))[None, :] - np.arange(len(logits))[:, None]
    allowed = (distance >= 0) & (distance < LONGEST_ANSWER)
    start, end = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    return float(scores[start, end]), int(start), int(end)


def _positions(window: Window, accepted: Sequence[tuple[int, str]]) -> tuple[int, int]:
    """Return (first, last token) of the first accepted answer, `NO_ANSWER` twice if the window lacks a part of it."""
    for start, text in accepted[:1]:
        end = start + len(text)
        inside = np.flatnonzero((window.offsets[:, 1] > start) & (window.offsets[:, 0] < end))
        if len(inside) and window.offsets[0][0] <= start and window.offsets[-1][1] >= end:
            return window.first + int(inside[0]), window.first + int(inside[-1])
    return NO_ANSWER, NO_ANSWER


def _shorten(questions: list[str], checkpoint: Checkpoint) -> list[str]:
    """Truncate questions to half a row, so that a window has room for the context."""
    most, options = max(1, checkpoint.max_length // 2 - 3), {"truncation": True, "return_offsets_mapping": True}
    encoded = checkpoint.tokenizer(questions, add_special_tokens=False, max_length=most, **options)
    return [
        question[: offsets[-1][1]] if offsets else question
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]
