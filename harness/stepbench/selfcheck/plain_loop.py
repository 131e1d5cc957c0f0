"""A workload's training loop written by hand: what the harness' own step is held against."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stepbench.training.data import Batches
from stepbench.training.types import Plan, Workload


def plain_step(
    workload: Workload, device: torch.device, *, left_out: range = range(0)
) -> Callable[[], None]:
    """Build the model with its optimizer on the device; calling the result is one step.

    It takes the batches in their order, but for those `left_out` by their index.
    """
    torch.manual_seed(workload.seed)
    model = workload.model().to(device)
    optimizer = workload.optimizer(model.parameters())
    batches = Batches(workload, Plan(), left_out=left_out)
    assert workload.loss is not None
    loss = workload.loss

    def step() -> None:
        inputs, targets = next(batches)
        inputs = inputs.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
