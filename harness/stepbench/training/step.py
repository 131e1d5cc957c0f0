"""One optimizer step over the global batch: its micro-batches, and the loop itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stepbench.errors import StepbenchError
from stepbench.training.data import HostBatch
from stepbench.training.types import Batch, Loop, Site


def micro_batches(host: HostBatch, site: Site) -> Iterator[tuple[Batch, bool]]:
    """The global batch's micro-batches on the device, and whether each is the last.

    Moved one at a time, so that a micro-batch never holds its neighbours' device memory.
    """
    parts, terms = _split(host, site), _terms_of_a_replica(host, site)
    for index, (inputs, targets) in enumerate(parts):
        yield (
            Batch(
                inputs=_on_device(inputs, site),
                targets=_on_device(targets, site),
                share=site.workload.loss_terms(targets) / terms,
            ),
            index == len(parts) - 1,
        )


def _on_device(part: Any, site: Site) -> Any:
    return tree_map(lambda tensor: tensor.to(site.device, non_blocking=True), part)


def _terms_of_a_replica(host: HostBatch, site: Site) -> float:
    """Loss terms of this replica's batch; the mean over replicas where they may differ."""
    terms = site.workload.loss_terms(host[1])
    if not terms:
        raise StepbenchError(
            f"{site.workload.name}: a batch held no loss term, so that its mean is none; count "
            "them by loss_terms=, and leave out samples that hold none"
        )
    if site.replicas == 1 or not site.workload.uneven_terms:
        return terms
    total = torch.tensor(float(terms), dtype=torch.float64, device=site.device)
    torch.distributed.all_reduce(total)
    return float(total) / site.replicas


def _split(host: HostBatch, site: Site) -> list[HostBatch]:
    size, rest = divmod(site.replica_batch, site.plan.micro_batches)
    assert rest == 0, "accumulation refuses what does not divide"
    for leaf in tree_leaves(host):
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (site.replica_batch,):
            shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise StepbenchError(
                f"{site.workload.name}: a batch must hold tensors whose first dimension is its "
                f"{site.replica_batch} samples, not {shape}; see collate="
            )
    if site.plan.micro_batches == 1:
        return [host]
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
            output = workload.call(model, batch.inputs)
            loss = output if workload.loss is None else workload.loss(output, batch.targets)
        if not isinstance(loss, Tensor):
            raise StepbenchError(
                f"{workload.name}: the loss is a {type(loss).__name__}, no tensor; where "
                "loss=None, call= must return it: lambda model, batch: model(**batch).loss"
            )
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
