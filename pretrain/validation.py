"""Figures on held-out blocks: one mask rate, one seed, whatever the recipe trains with."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from .loss import count_targets, loss_share, predict

MASK_RATE = 0.15  # BERT's, so that figures compare across recipes
SEED = 0


@torch.no_grad()
def validate(model: nn.Module, batches: list[dict[str, torch.Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """`validation_loss`: mean loss in nats per hidden token (plus the next-sentence loss where that is trained);
    then also `validation_next_sentence_accuracy`.

    Every process takes its share of the batches; all return the same figures.
    """
    model.eval()
    totals = sum(map(count_targets, batches)).to(accelerator.device)
    figures = torch.zeros(2, device=accelerator.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    for start in range(0, len(batches), world):
        # sharded models compute together: who has no batch left goes along with one that does not count
        counts = start + rank < len(batches)
        batch = batches[start + rank] if counts else batches[-1]
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        outputs = predict(accelerator.unwrap_model(model), batch, totals)
        figures[0] += counts * loss_share(outputs, batch, totals)
        if "next_sentence_label" in batch:
            right = outputs["seq_relationship_logits"].argmax(dim=-1) == batch["next_sentence_label"]
            figures[1] += counts * right.sum() / totals[1]
    model.train()
    loss, accuracy = accelerator.reduce(figures, reduction="sum").tolist()
    if "next_sentence_label" in batches[0]:
        return {"validation_loss": loss, "validation_next_sentence_accuracy": accuracy}
    return {"validation_loss": loss}
