"""Answers to questions: the part of a text, of any length, that says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering

from ..examples import Example
from ..inference import FinishedModel
from ..kinds.spans import IMPOSSIBLE, Spans, cut_questions
from .answers import Answer, Answerer, Texts, rounded


class Passages(Answerer):
    """As in training: a long text goes into several windows, and the best span of all of them is the answer, or ""
    where the model was trained to say so (its config's `IMPOSSIBLE`). `start` and `end` are characters of the text;
    `probability` is that of the span's first token times that of its last, in its window."""

    ending = "ForQuestionAnswering"
    auto_class = AutoModelForQuestionAnswering
    reads = {"question": ("question",), "text": ("context", "text")}
    default_max_length = Spans.default_max_length
    fields = ("prediction", "start", "end", "probability")

    def __init__(self, opened: FinishedModel, batch_size: int) -> None:
        super().__init__(opened, batch_size)
        self.kind = Spans(unanswerable=bool(getattr(self.model.config, IMPOSSIBLE, False)))
        self.kind.check_length(self.max_length)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        questions = [row["question"] for row in rows]
        shortened = cut_questions(questions, self.checkpoint)
        self.cut += sum(short != whole for short, whole in zip(shortened, questions, strict=True))
        examples = [Example((question, row["text"]), []) for question, row in zip(questions, rows, strict=True)]
        split = self.kind.encode_split(examples, self.checkpoint, labelled=False)
        outputs: list[np.ndarray] = [np.empty(0)] * len(split.rows)
        for chosen, batch in self.batches(split.rows):
            answer = self.model(**batch)
            logits = self.kind.outputs((answer.start_logits, answer.end_logits)).cpu().numpy()
            real = batch["attention_mask"].bool().cpu().numpy()
            for place, i in enumerate(chosen):
                outputs[i] = logits[place][real[place]]
        answers = []
        for found in self.kind.find(outputs, split):
            start, end = torch.from_numpy(outputs[found.row]).softmax(dim=0).unbind(dim=1)
            place = {"start": found.start, "end": found.end} if found.text else {"start": None, "end": None}
            probability = rounded(start[found.first] * end[found.last])
            answers.append({"prediction": found.text, **place, "probability": probability})
        return answers
