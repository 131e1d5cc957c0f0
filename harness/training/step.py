"""One optimizer step over the global batch: where its data come from, and the loop itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, DistributedSampler

from harness.core import StepbenchError
from harness.training.types import Batch, Loop, Site, Workload

HostBatch: TypeAlias = tuple[Any, Any]


def global_batches(workload: Workload) -> Iterator[HostBatch]:
    """Global batches on the host, for ever; order is a function of (seed, epoch) only."""
    dataset = workload.dataset()
    size = len(dataset)  # type: ignore[arg-type]
    if size < workload.global_batch:
        raise StepbenchError(
            f"{workload.name}: the data hold {size} samples, fewer than a global batch of "
            f"{workload.global_batch}; lower batch="
        )
    # torch's own sampler that knows epochs; one replica is the whole data.
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, num_replicas=1, rank=0, seed=workload.seed, drop_last=True
    )
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=workload.global_batch, sampler=sampler, drop_last=True
    )
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from loader


def micro_batches(host: HostBatch, site: Site) -> Iterator[tuple[Batch, bool]]:
    """The global batch's micro-batches on the device, and whether each is the last.

    Moved one at a time, so that a micro-batch never holds its neighbours' device memory.
    """
    parts, total = _split(host, site), site.workload.loss_terms(host[1])
    for index, (inputs, targets) in enumerate(parts):
        move = lambda tensor: tensor.to(site.device, non_blocking=True)  # noqa: E731
        yield (
            Batch(
                inputs=tree_map(move, inputs),
                targets=tree_map(move, targets),
                share=site.workload.loss_terms(targets) / total,
            ),
            index == len(parts) - 1,
        )


def _split(host: HostBatch, site: Site) -> list[HostBatch]:
    size, rest = divmod(site.workload.global_batch, site.plan.micro_batches)
    assert rest == 0, "accumulation refuses what does not divide"
    return [
        tree_map(lambda tensor, at=index * size: tensor[at : at + size], host)
        for index in range(site.plan.micro_batches)
    ]


def plain_loop(model: nn.Module, optimizer: torch.optim.Optimizer, site: Site) -> Loop:
    """The loop that reads the plan: autocast over forward and loss, scale, unscale, clip, step."""
    plan, workload, device = site.plan, site.workload, site.device.type
    scaler = torch.amp.GradScaler(device, enabled=plan.scale_loss)

    def forward(batch: Batch) -> Tensor:
        with torch.autocast(device, dtype=plan.autocast, enabled=plan.autocast is not None):
            loss = workload.loss(model(batch.inputs), batch.targets)
        return loss * batch.share

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()

    def update() -> None:
        if plan.max_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return Loop(
        model=model,
        optimizer=optimizer,
        forward=forward,
        backward=backward,
        update=update,
        loss_scale=scaler.get_scale,
    )


def train_step(loop: Loop, host: HostBatch, site: Site) -> None:
    """One optimizer step over one global batch."""
    for batch, last in micro_batches(host, site):
        with ExitStack() as stack:
            for around in loop.around:
                stack.enter_context(around(last))
            loop.backward(loop.forward(batch))
    loop.update()
