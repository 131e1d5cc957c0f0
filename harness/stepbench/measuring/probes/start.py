"""The parameters that training begins at: put back, and what an update made of them.

Kept on the host, where they are in no peak of a device; on a CPU the memory probe takes them off.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from stepbench.measuring.probes.memory import entries, inner_optimizers, local, reals
from stepbench.training.types import Loop


class Start:
    """This rank's part of all parameters that are trained, as they were when this was made.

    An optimizer's own copies of them, as one that works on the host has, are among them.
    """

    def __init__(self, loop: Loop) -> None:
        groups = (group for one in inner_optimizers(loop) for group in one.param_groups)
        own = (parameter for group in groups for parameter in group["params"])
        trained = (p for p in (*loop.model.parameters(), *own) if p.requires_grad)
        parts = {id(p): local(p.detach()) for p in trained}
        self._kept = {key: (part, part.to("cpu", copy=True)) for key, part in parts.items()}
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def put_back(self) -> None:
        """Let the parameters be what they were."""
        for part, kept in self._kept.values():
            part.copy_(kept)

    def forget(self) -> None:
        """Hold nothing more."""
        self._kept.clear()

    def watched(self, loop: Loop) -> Loop:
        """The loop, its gradients kept beyond the update for `descent`."""

        def update() -> None:
            self._gradients = [(p, p.grad) for p in loop.model.parameters() if p.grad is not None]
            loop.update()

        return replace(loop, update=update)

    def descent(self) -> float:
        """How far the update led along its gradient g, (p - start) g / |g| over all parameters.

        Of that, what g does not tell apart from rounding has no part: where g is nearly 0, Adam's
        update is as large as elsewhere, and its sign is chance.
        """
        sums = torch.zeros(2, 2, dtype=torch.float64)  # of whole tensors and of shards
        for parameter, gradient in self._gradients:
            part, kept = self._kept[id(parameter)]
            slope = reals(local(entries(gradient))).double().flatten()
            change = reals(part).double() - reals(kept.to(part.device)).double()
            if gradient.is_sparse:
                change = change[tuple(gradient.coalesce().indices())]
            change = change.flatten()
            sharded = int(isinstance(gradient, DTensor))
            sums[sharded] += torch.stack([change.dot(slope), slope.dot(slope)]).cpu()
        if any(isinstance(gradient, DTensor) for _, gradient in self._gradients):
            of_all = sums[1].to(self._gradients[0][1].device)
            dist.all_reduce(of_all)
            sums[1] = of_all.cpu()
        self._gradients.clear()
        along, squares = map(float, sums.sum(0))
        return along / math.sqrt(squares) if squares else 0.0
