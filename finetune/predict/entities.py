"""The named parts of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Encoding
from transformers import AutoModelForTokenClassification

from hf_tiny_transformer.runs import UserError

from ..inference import FinishedModel
from .answers import Answer, Answerer, Texts, rounded, rows_of


class Entities(Answerer):
    """Each word (as the tokenizer splits) has the label of its first piece, as in training. Labels like B-PER are
    joined to entities, others stand for their word; an entity's probability is the mean of its words'."""

    ending = "ForTokenClassification"
    auto_class = AutoModelForTokenClassification
    fields = ("entities",)

    def __init__(self, opened: FinishedModel, batch_size: int) -> None:
        super().__init__(opened, batch_size)
        if not self.tokenizer.is_fast:
            raise UserError(
                f"--model {self.source}: its tokenizer does not tell words apart; save a fast one (tokenizer.json)"
            )
        self.names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        encoded = self.encode([row["text"] for row in rows])
        self.cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        answers: list[Answer] = [{}] * len(rows)
        for chosen, batch in self.batches(rows_of(encoded)):
            logits = self.model(**batch).logits.float().cpu()
            real = batch["attention_mask"].bool().cpu()
            for place, i in enumerate(chosen):
                answers[i] = self._answer(logits[place][real[place]], encoded.encodings[i], rows[i]["text"])
        return answers

    def _answer(self, logits: torch.Tensor, encoding: Encoding, text: str) -> Answer:
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
                {"label": label, "start": start, "end": stop, "text": text[start:stop], "probability": rounded(mean)}
            )
        return {"entities": entities}
