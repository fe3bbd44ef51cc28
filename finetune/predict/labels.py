"""Labels and numbers for texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForSequenceClassification

from ..inference import FinishedModel
from .answers import Answer, Answerer, Texts, rounded, rows_of

THRESHOLD = 0.5  # a label of several is predicted from this probability on


class Labels(Answerer):
    """What is answered, the config says: one label, several, or a number."""

    ending = "ForSequenceClassification"
    auto_class = AutoModelForSequenceClassification
    reads = {"text": ("text",), "pair": ()}

    def __init__(self, opened: FinishedModel, batch_size: int) -> None:
        super().__init__(opened, batch_size)
        self.names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.fields, self._answer = self._kind()

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        encoded = rows_of(self.encode(*([row[name] for row in rows] for name in rows[0])))
        self.cut += sum(self.is_cut(one, *texts.values()) for one, texts in zip(encoded, rows, strict=True))
        answers: list[Answer] = [{}] * len(rows)
        for chosen, batch in self.batches(encoded):
            logits = self.model(**batch).logits.float().cpu()
            for i, of_row in zip(chosen, logits, strict=True):
                answers[i] = self._answer(of_row)
        return answers

    def _kind(self) -> tuple[tuple[str, ...], Callable[[torch.Tensor], Answer]]:
        config = self.model.config
        if config.problem_type == "multi_label_classification":
            return ("prediction", "probabilities"), self._several
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            return ("prediction",), self._number
        return ("prediction", "probability"), self._single

    def _single(self, logits: torch.Tensor) -> Answer:
        probability, index = logits.softmax(dim=-1).max(dim=-1)
        return {"prediction": self.names[index], "probability": rounded(probability)}

    def _several(self, logits: torch.Tensor) -> Answer:
        probabilities = dict(zip(self.names, map(rounded, logits.sigmoid()), strict=True))
        predicted = [name for name, probability in probabilities.items() if probability >= THRESHOLD]
        return {"prediction": predicted, "probabilities": probabilities}

    def _number(self, logits: torch.Tensor) -> Answer:
        numbers = [rounded(number) for number in logits]
        return {"prediction": numbers[0] if len(numbers) == 1 else numbers}
