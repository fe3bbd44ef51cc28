"""Figures on held-out blocks, with the same masks for every recipe."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from .batches import Batch
from .loop import count_targets, forward


@torch.no_grad()
def validate(model: nn.Module, batches: list[Batch], accelerator: Accelerator) -> dict[str, float]:
    """Return `validation_loss`, in nats per target token, and with mlm_nsp `validation_next_sentence_accuracy`.

    With mlm_nsp the loss includes the next-sentence loss. The processes share the batches and return the same figures.
    """
    model.eval()
    totals = sum(map(count_targets, batches), torch.zeros(2)).to(accelerator.device)
    figures = torch.zeros(2, device=accelerator.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    for start in range(0, len(batches), world):
        # sharded models compute together: a process without a batch computes one that does not count
        counts = start + rank < len(batches)
        batch = batches[start + rank] if counts else batches[-1]
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        outputs = forward(accelerator.unwrap_model(model), batch, totals)
        figures[0] += counts * outputs["loss"]
        if "next_sentence_label" in batch:
            correct = outputs["seq_relationship_logits"].argmax(dim=-1) == batch["next_sentence_label"]
            figures[1] += counts * correct.sum() / totals[1]
    model.train()
    loss, accuracy = accelerator.reduce(figures, reduction="sum").tolist()
    if "next_sentence_label" in batches[0]:
        return {"validation_loss": loss, "validation_next_sentence_accuracy": accuracy}
    return {"validation_loss": loss}
