"""What a fine-tuned model says about texts: labels, numbers, entities, as its config says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from seqeval.metrics.sequence_labeling import get_entities
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BatchEncoding,
    PreTrainedConfig,
)

from hf_tiny_transformer.runs import UserError

from ..inference import FinishedModel, open_model
from ..model_files import read_config

Answer = dict[str, Any]
THRESHOLD = 0.5  # a label of several is predicted from this probability on


class Predictor:
    """Answers texts; `fields` are an answer's keys; `cut` counts the texts that were longer than the model takes."""

    def __init__(self, opened: FinishedModel, batch_size: int) -> None:
        self.opened, self.batch_size, self.cut = opened, batch_size, 0
        self.names = [opened.model.config.id2label[i] for i in range(opened.model.config.num_labels)]
        self.fields, self._answer = self._kind()

    @torch.inference_mode()
    def __call__(self, rows: Sequence[tuple[str, ...]]) -> list[Answer]:
        """One answer for each row of one text or two, in order; texts of similar length run together."""
        encoded = self._encode(rows)
        order = sorted(range(len(rows)), key=lambda i: len(encoded["input_ids"][i]))
        answers: list[Answer] = [{}] * len(rows)
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self.opened.tokenizer.pad(
                {
                    key: [encoded[key][i] for i in chosen]
                    for key in self.opened.tokenizer.model_input_names
                    if key in encoded
                },
                return_tensors="pt",
            )
            logits = self.opened.model(**batch.to(self.opened.model.device)).logits.float().cpu()
            for place, i in enumerate(chosen):
                answers[i] = self._answer(
                    _unpadded(logits[place], batch["attention_mask"][place]), encoded, i, rows[i][0]
                )
        return answers

    def _encode(self, rows: Sequence[tuple[str, ...]]) -> BatchEncoding:
        columns = [list(column) for column in zip(*rows, strict=True)]
        encoded = self.opened.tokenizer(*columns, truncation=True, max_length=self.opened.max_length)
        if self.opened.tokenizer.is_fast:
            self.cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        return encoded

    def _kind(self) -> tuple[list[str], Callable[..., Answer]]:
        config = self.opened.model.config
        if _for_tokens(config):
            return ["entities"], self._entities
        if config.problem_type == "multi_label_classification":
            return ["prediction", "probabilities"], self._several
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            return ["prediction"], self._number
        return ["prediction", "probability"], self._single

    def _single(self, logits: torch.Tensor, *_: Any) -> Answer:
        probability, index = logits.softmax(dim=-1).max(dim=-1)
        return {"prediction": self.names[index], "probability": _round(probability)}

    def _several(self, logits: torch.Tensor, *_: Any) -> Answer:
        probabilities = dict(zip(self.names, map(_round, logits.sigmoid()), strict=True))
        predicted = [name for name, probability in probabilities.items() if probability >= THRESHOLD]
        return {"prediction": predicted, "probabilities": probabilities}

    def _number(self, logits: torch.Tensor, *_: Any) -> Answer:
        numbers = [_round(number) for number in logits]
        return {"prediction": numbers[0] if len(numbers) == 1 else numbers}

    def _entities(self, logits: torch.Tensor, encoded: BatchEncoding, index: int, text: str) -> Answer:
        """Each word (as the tokenizer splits) has the label of its first piece, as in training. Labels like B-PER are
        joined to entities, others stand for their word; an entity's probability is the mean of its words'."""
        encoding = encoded.encodings[index]
        first: dict[int, int] = {}
        for position, word in enumerate(encoding.word_ids):
            if word is not None:
                first.setdefault(word, position)
        probabilities, labels = logits.softmax(dim=-1).max(dim=-1)
        tags = [self.names[labels[position]] for position in first.values()]
        if all(re.match(r"[BIES]-.|O$", name) for name in self.names):
            spans = get_entities(tags)
        else:
            spans = [(tag, i, i) for i, tag in enumerate(tags) if tag != "O"]
        words, positions = list(first), torch.tensor(list(first.values()))
        entities = []
        for label, begin, end in spans:
            start, stop = encoding.word_to_chars(words[begin])[0], encoding.word_to_chars(words[end])[1]
            mean = probabilities[positions[begin : end + 1]].mean()
            entities.append(
                {"label": label, "start": start, "end": stop, "text": text[start:stop], "probability": _round(mean)}
            )
        return {"entities": entities}


def open_predictor(source: str, batch_size: int, *, pairs: bool) -> Predictor:
    """Raises:
    UserError: the model can't be opened, or is no classifier, or takes no pairs.
    """
    config = read_config(source)
    kinds = {
        "ForSequenceClassification": AutoModelForSequenceClassification,
        "ForTokenClassification": AutoModelForTokenClassification,
    }
    saved_as = (config.architectures or ["no class"])[0]
    auto_class = next((auto_class for ending, auto_class in kinds.items() if saved_as.endswith(ending)), None)
    if auto_class is None:
        raise UserError(
            f"--model {source}: config.json says {saved_as}, but predict takes ...{' or ...'.join(kinds)}; "
            "fine-tune it first (python -m finetune --task ...)"
        )
    if pairs and _for_tokens(config):
        raise UserError(f"--pair: {saved_as} reads one text at a time; leave it out")
    opened = open_model(source, config, auto_class)
    if _for_tokens(config) and not opened.tokenizer.is_fast:
        raise UserError(f"--model {source}: its tokenizer does not tell words apart; save a fast one (tokenizer.json)")
    return Predictor(opened, batch_size)


def _for_tokens(config: PreTrainedConfig) -> bool:
    return (config.architectures or [""])[0].endswith("ForTokenClassification")


def _unpadded(logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """One row's logits: (labels,) as they are, (T, labels) without the padding's."""
    return logits if logits.ndim == 1 else logits[attention_mask.bool().cpu()]


def _round(number: torch.Tensor) -> float:
    """What float32 holds, without the digits that it does not."""
    return float(f"{float(number):.7g}")
