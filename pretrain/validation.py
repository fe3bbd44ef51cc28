"""The validation loss: held-out blocks, one mask rate, one seed, whatever the recipe trains with."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from .objective import count_targets, loss_share

MASK_RATE = 0.15  # BERT's, so that figures compare across recipes
SEED = 0


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[dict[str, torch.Tensor]], accelerator: Accelerator) -> float:
    """Mean loss in nats per hidden token (plus the next-sentence loss where that is trained).

    Every process takes its share of the batches; all return the same figure.
    """
    model.eval()
    totals = sum(map(count_targets, batches)).to(accelerator.device)
    loss = torch.zeros((), device=accelerator.device)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        loss += loss_share(accelerator.unwrap_model(model), batch, totals)
    model.train()
    return accelerator.reduce(loss, reduction="sum").item()
