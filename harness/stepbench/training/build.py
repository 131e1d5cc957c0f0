"""Builds a case's loop: all plans, then all models, losses, optimizers, and last all loops."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from stepbench.records.case import Combination
from stepbench.training.step import plain_loop
from stepbench.training.techniques import chosen_techniques, plan_of
from stepbench.training.types import Loop, MakeOptimizer, Site, Unsupported, Workload


def batch_dependent(workload: Workload, model: nn.Module) -> bool:
    """Whether a sample's output depends on its batch: the workload's word, or by its modules."""
    if workload.batch_dependent is not None:
        return workload.batch_dependent
    return any(
        isinstance(part, _BatchNorm) or (isinstance(part, _DropoutNd) and part.p > 0)
        for part in model.modules()
    )


def build(
    workload: Workload,
    combination: Combination,
    device: torch.device,
    *,
    ranks: int = 1,
    rank: int = 0,
    mesh: DeviceMesh | None = None,
) -> tuple[Loop, Site]:
    """The loop and the site it stands on; seeds torch's generators from the workload.

    `mesh` is there where the combination's plan is distributed.

    Raises:
        Unsupported: a technique cannot apply to this model.
        StepbenchError: the workload is no whole one.
    """
    techniques = chosen_techniques(combination)
    site = Site(
        workload=workload,
        plan=plan_of(combination),
        device=device,
        ranks=ranks,
        rank=rank,
        mesh=mesh,
    )
    # Weights come from the CPU's generator whatever the device: without it there is no parity.
    torch.manual_seed(workload.seed)
    model = workload.model()
    blocks = workload.blocks(model)
    if rank:  # every rank draws the same weights, and then its own dropout
        torch.manual_seed(workload.seed + rank)
    if not site.plan.shards:
        model.to(device)
    whole = model
    for technique in techniques:
        model = technique.model(model, site)
        if model is whole:  # a block may be a layer that was replaced
            blocks = workload.blocks(model)
    made: list[str] = []
    loss, make_optimizer = workload.loss, _own_optimizer(workload.optimizer, whole, made)
    for technique in techniques:
        loss = technique.loss(loss, site) if loss else None
    for technique in techniques:
        make_optimizer = technique.optimizer(make_optimizer, site)
    # What is frozen has no gradient: some optimizers would refuse it, or hold state for it.
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    with_loss = replace(site, workload=replace(workload, loss=loss))
    loop = replace(plain_loop(model, make_optimizer(trained), with_loss), blocks=blocks)
    for technique in techniques:
        loop = technique.loop(loop, site)
    kind = workload.optimizer_kind or made[0]
    return loop, replace(site, workload=replace(workload, optimizer_kind=kind))


def _own_optimizer(make: Any, model: nn.Module, made: list[str]) -> MakeOptimizer:
    """The workload's constructor as one of parameters, whether it asks for those or for the model.

    Each optimizer that it makes adds its class' name to `made`.
    """
    asks_for_model = next(iter(inspect.signature(make).parameters), None) == "model"

    def own(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = make(model if asks_for_model else parameters)
        made.append(type(optimizer).__name__)
        if asks_for_model:
            _keep(optimizer, {id(parameter) for parameter in parameters})
        return optimizer

    return own


def _keep(optimizer: torch.optim.Optimizer, given: set[int]) -> None:
    """Leave to the optimizer of its parameters only those that it was given, by group."""
    for group in optimizer.param_groups:
        group["params"] = [one for one in group["params"] if id(one) in given]
    optimizer.param_groups[:] = [one for one in optimizer.param_groups if one["params"]]
    if not optimizer.param_groups:
        raise Unsupported("the optimizer is made of the model, and is to update none of it here")
