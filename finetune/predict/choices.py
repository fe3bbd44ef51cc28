"""The right one of several choices; how many there are may differ from row to row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForMultipleChoice

from ..examples import Example
from ..kinds.multiple_choice import MultipleChoice
from .answers import Answer, Answerer, Texts, rounded


class Choices(Answerer):
    """`prediction` is the index of a choice, from 0, `choice` its text."""

    ending = "ForMultipleChoice"
    auto_class = AutoModelForMultipleChoice
    reads = {"text": ("text",), "pair": (), "choices": ("choices",)}
    fields = ("prediction", "choice", "probability")

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        kind = MultipleChoice(shared=len(rows[0]) - 1)
        examples = [Example((*(row[name] for name in row if name != "choices"), *row["choices"]), None) for row in rows]
        encoded = kind.encode(examples, self.checkpoint, labelled=False)
        single = [
            {name: values[i] for name, values in row.items()}
            for row, texts in zip(encoded, rows, strict=True)
            for i in range(len(texts["choices"]))
        ]
        scores = torch.empty(len(single))
        for chosen, batch in self.batches(single):  # each choice is scored by itself, as if it were the only one
            logits = self.model(**{name: values[:, None] for name, values in batch.items()}).logits
            scores[chosen] = logits[:, 0].float().cpu()
        answers, start = [], 0
        for example, row in zip(examples, rows, strict=True):
            pairs = kind.pairs(example.texts)
            of_row = slice(start, start := start + len(pairs))
            self.cut += any(self.is_cut(one, *pair) for one, pair in zip(single[of_row], pairs, strict=True))
            probability, index = scores[of_row].softmax(dim=0).max(dim=0)
            choice = {"prediction": int(index), "choice": row["choices"][index]}
            answers.append(choice | {"probability": rounded(probability)})
        return answers
