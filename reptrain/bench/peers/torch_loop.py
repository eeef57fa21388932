"""The plain torch loop in which models of other libraries train."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def torch_loop(
    model: nn.Module, loss_of_batch: Callable[[], Tensor], *, precision: str, device: str = "cpu"
) -> Iterator[float]:
    """The loss of each step, without end, with clipping and fused AdamW.

    Args:
        model: The model, on ``device``.
        loss_of_batch: Computes the loss of the next batch.
        precision: "bf16" is autocast; otherwise fp32.
        device: Where it trains.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()
    while True:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of_batch()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
