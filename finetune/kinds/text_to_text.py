"""A text for a text: summaries, translations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from ..data import Example
from . import Answer, Checkpoint, Collator, EncodedSplit, Kind, Outputs, tokenize

METRICS: dict[str, tuple[str, ...]] = {"rouge": ("rougeL", "rouge1", "rouge2", "rougeLsum"), "bleu": ("bleu",)}


@dataclass(frozen=True)
class TextToText(Kind):
    """A label is the text to write; `metric` is rouge or bleu.

    Evaluation generates greedily, or as the checkpoint's generation_config.json states, up to `max_length` tokens.
    """

    metric: str = "rouge"

    auto_class = AutoModelForSeq2SeqLM
    ending = "ForConditionalGeneration"
    pipeline_tag = "text2text-generation"
    has_pipeline = False
    generates = True
    answer_length = Kind.default_max_length

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]  # read-only here
        """Return the scores of `metric`."""
        return METRICS[self.metric]

    def describe(self) -> str:
        return "writing a text for a text"

    def call(self, example: Example) -> str:
        return f"""encoded = tokenizer({example.texts[0]!r}, truncation=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**encoded, max_length=128)[0], skip_special_tokens=True))"""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> EncodedSplit:
        targets = {"text_target": [example.label for example in examples]} if labelled else {}
        rows, cut = tokenize(checkpoint, [example.texts[0] for example in examples], **targets)
        # Models put the start token before the labels to make the decoder's input. Where the tokenizer begins a text
        # with that token, as ours does, it would occur twice.
        start = getattr(checkpoint.config, "decoder_start_token_id", None)
        for row in rows if labelled else ():
            row["labels"] = row["labels"][1:] if row["labels"][:1] == [start] else row["labels"]
        return EncodedSplit(examples, rows, cut, tokenizer=checkpoint.tokenizer)

    def collator(self, checkpoint: Checkpoint) -> Collator:
        return DataCollatorForSeq2Seq(checkpoint.tokenizer)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return (B, T) token ids, returned instead of logits because the kind `generates`."""
        return logits  # type: ignore[return-value]  # one tensor of ids

    def decode(self, outputs: Outputs, split: EncodedSplit) -> list[str]:
        assert split.tokenizer is not None, "encode sets it"
        padding = split.tokenizer.pad_token_id  # Trainer pads with -100
        texts = [np.where(ids < 0, padding, ids).tolist() for ids in outputs]
        return [text.strip() for text in split.tokenizer.batch_decode(texts, skip_special_tokens=True)]

    def answer(self, outputs: Outputs, split: EncodedSplit) -> list[Answer]:
        return [{"prediction": text} for text in self.decode(outputs, split)]
