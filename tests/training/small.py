"""Helpers for training tests: a case's loop run for some steps, and a loop written by hand."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import parse
from stepbench.training.types import Loop, Plan, Workload
from stepbench.training.workloads import load

CPU = torch.device("cpu")


def tiny(options: str = "") -> Workload:
    return load(f"gpt-tiny@{options}" if options else "gpt-tiny")


def in_type(workload: Workload, dtype: torch.dtype) -> Workload:
    return replace(workload, model=lambda: workload.model().to(dtype))


def trained(
    workload: Workload,
    combination: str,
    steps: int,
    *,
    keep: Callable[[Loop], Loop] = lambda loop: loop,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters after `steps` steps of the harness, and the first step's gradients."""
    loop, site = build(workload, parse(combination), CPU)
    loop, gradients = keep(loop), []
    update = loop.update

    def noted() -> None:
        if not gradients:
            gradients.extend(gradients_of(loop.model))
        update()

    batches = Batches(workload, Plan())
    for _ in range(steps):
        train_step(replace(loop, update=noted), next(batches), site)
    return [p.detach().clone() for p in loop.model.parameters()], gradients


def by_hand(
    workload: Workload, steps: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    """The same of the plainest loop there is; the losses too."""
    torch.manual_seed(workload.seed)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters())
    gradients, losses, batches = [], [], Batches(workload, Plan())
    for _ in range(steps):
        inputs, targets = next(batches)
        loss = workload.loss(model(inputs), targets)
        loss.backward()
        gradients = gradients or gradients_of(model)
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()], gradients, losses


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def relative(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm of the reference, over all tensors together."""
    assert len(ours) == len(theirs) > 0
    difference = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)])
    return float(difference.norm() / torch.cat([b.flatten() for b in theirs]).norm())
