"""A text for a text: summaries, translations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from hf_tiny_transformer.cards import THIS_DIRECTORY

from ..checkpoint import Checkpoint
from ..examples import Example
from .base import EncodedSplit, Kind, ModelInput

METRICS = {
    "rouge": {"metrics": ("rougeL", "rouge1", "rouge2", "rougeLsum"), "main": "rougeL"},
    "bleu": {"metrics": ("bleu",), "main": "bleu"},
}


@dataclass(frozen=True)
class WrittenSplit(EncodedSplit):
    """What the model writes is read with `tokenizer`."""

    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextToText(Kind):
    """A label is the text to write; `metric` is rouge or bleu. Evaluation writes greedily, or as the checkpoint's
    generation_config.json says, up to as many tokens as are read."""

    metric: str = "rouge"

    auto_class = AutoModelForSeq2SeqLM
    generates = True
    pipeline_tag = "text2text-generation"

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS[self.metric]["metrics"]

    @property
    def main(self) -> str:
        return METRICS[self.metric]["main"]

    def config_fields(self) -> dict[str, Any]:
        return {}

    def describe(self) -> str:
        return "writing a text for a text"

    def usage(self, example: Example, trust: str) -> str:
        return f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

{THIS_DIRECTORY}
tokenizer = AutoTokenizer.from_pretrained(model_id{trust})
model = AutoModelForSeq2SeqLM.from_pretrained(model_id{trust})
encoded = tokenizer({example.texts[0]!r}, truncation=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**encoded, max_length=128)[0], skip_special_tokens=True))"""

    def encode(self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True) -> list[ModelInput]:
        texts = {"text": [example.texts[0] for example in examples]}
        if labelled:
            texts["text_target"] = [example.label for example in examples]
        encoded = checkpoint.tokenizer(**texts, truncation=True, max_length=checkpoint.max_length)
        if labelled:
            # Models put the start token before the labels to make the decoder's input; where it is the token that the
            # tokenizer begins a text with, as in ours, it would come twice.
            start = getattr(checkpoint.config, "decoder_start_token_id", None)
            encoded["labels"] = [ids[1:] if ids[:1] == [start] else ids for ids in encoded["labels"]]
        return [{name: values[i] for name, values in encoded.items()} for i in range(len(examples))]

    def encode_split(
        self, examples: Sequence[Example], checkpoint: Checkpoint, *, labelled: bool = True
    ) -> WrittenSplit:
        return WrittenSplit(examples, self.encode(examples, checkpoint, labelled=labelled), checkpoint.tokenizer)

    def collator(self, checkpoint: Checkpoint) -> Callable[[list[ModelInput]], dict[str, torch.Tensor]]:
        return DataCollatorForSeq2Seq(checkpoint.tokenizer)

    def outputs(self, logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """(B, T) token ids, which `generates` brings in the place of logits."""
        return logits

    def decode(self, outputs: np.ndarray, split: WrittenSplit) -> list[str]:
        ids = np.where(outputs < 0, split.tokenizer.pad_token_id, outputs)  # Trainer fills up with -100
        texts = split.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def references(self, examples: Sequence[Example]) -> list[str]:
        return [example.label for example in examples]
