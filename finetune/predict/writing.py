"""Texts that a sequence-to-sequence model writes for texts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from transformers import AutoModelForSeq2SeqLM

from ..kinds.text_to_text import TextToText, WrittenSplit
from .answers import Answer, Answerer, Texts, rows_of


class Writing(Answerer):
    """Greedily, or as the model's generation_config.json says, up to as many tokens as are read: as training's
    evaluation writes."""

    ending = "ForConditionalGeneration"
    auto_class = AutoModelForSeq2SeqLM
    default_max_length = TextToText.default_max_length
    fields = ("prediction",)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        encoded = rows_of(self.encode([row["text"] for row in rows]))
        self.cut += sum(self.is_cut(one, row["text"]) for one, row in zip(encoded, rows, strict=True))
        known = inspect.signature(self.model.forward).parameters  # `generate` refuses what it does not use
        answers: list[Answer] = [{}] * len(rows)
        for chosen, batch in self.batches(encoded):
            read = {name: values for name, values in batch.items() if name in known}
            ids = self.model.generate(**read, max_length=self.max_length).cpu().numpy()
            texts = TextToText().decode(ids, WrittenSplit([], [], self.tokenizer))
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = {"prediction": text}
        return answers
