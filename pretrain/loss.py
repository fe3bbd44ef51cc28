"""The loss of a micro-batch, as its share of the whole step's loss: the shares of all micro-batches add up."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.utils import ModelOutput

from .objectives.masking import IGNORED


def count_targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(2,) float: hidden tokens that are predicted, and rows."""
    return torch.tensor([(batch["labels"] != IGNORED).sum().item(), len(batch["input_ids"])], dtype=torch.float)


def predict(model: nn.Module, batch: dict[str, torch.Tensor], totals: torch.Tensor) -> ModelOutput:
    """The model's outputs for a micro-batch: `loss` is the masked tokens' share; their logits are not kept.

    Args:
        totals: (2,) `count_targets` summed over the whole step, all processes included.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "next_sentence_label"}
    return model(**inputs, num_items_in_batch=totals[0], skip_logits=True)


def loss_share(outputs: ModelOutput, batch: dict[str, torch.Tensor], totals: torch.Tensor) -> torch.Tensor:
    """Masked-token loss summed over this micro-batch and divided by the step's count of targets, so that neither the
    number of micro-batches and processes nor their unevenness matters; the same for next-sentence loss and rows.
    """
    loss = outputs["loss"]
    if "next_sentence_label" in batch:
        logits = outputs["seq_relationship_logits"].float()
        loss = loss + cross_entropy(logits, batch["next_sentence_label"], reduction="sum") / totals[1]
    return loss
