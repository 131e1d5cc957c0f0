"""What became of the model in the timed steps: their losses, and which tensors they changed.

Inside the window only references are kept; everything is read before and after it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from stepbench.measuring.probes.memory import plain_tensors, reals
from stepbench.records.evidence import Evidence
from stepbench.training.types import Batch, Loop

# Sum and norm of each plain tensor: opposite changes of two elements leave only one of them.
Fingerprint = tuple[tuple[float, float], ...]


class Timed:
    """A window: `loop` is what its steps run, and keeps their losses.

    Made before the first of them, after `begins` other steps.
    """

    def __init__(self, loop: Loop, *, begins: int) -> None:
        self._model, self._begins = loop.model, begins
        self._before = fingerprints(loop.model)
        self._losses: list[list[Tensor]] = [[]]  # of each step, and of one that is to come

        def forward(batch: Batch) -> Tensor:
            loss = loop.forward(batch)
            self._losses[-1].append(loss.detach())
            return loss

        def update() -> None:
            loop.update()
            self._losses.append([])

        self.loop = replace(loop, forward=forward, update=update)

    def evidence(self) -> Evidence:
        """What the steps left; to be asked for once, after the last of them."""
        losses = tuple(float(sum(of_a_step)) for of_a_step in self._losses[:-1])
        self._losses.clear()  # they would be growth
        after = fingerprints(self._model)
        unchanged = tuple(name for name in after if after[name] == self._before.get(name))
        parameters = {name for name, _ in unwrapped(self._model).named_parameters()}
        return Evidence(
            begins=self._begins,
            losses=losses,
            parameter_norm=parameter_norm(self._model),
            changed=len(parameters - set(unchanged)),
            unchanged=unchanged,
        )


def parameter_norm(model: nn.Module) -> float:
    """Norm of all trained parameters together: this rank's part of them."""
    trained = (one for one in unwrapped(model).parameters() if one.requires_grad)
    return math.hypot(*(norm for one in trained for _, norm in _fingerprint(one)))


def fingerprints(model: nn.Module) -> dict[str, Fingerprint]:
    """One of every parameter and buffer (this rank's part of it), by name."""
    whole = unwrapped(model)
    named = [*whole.named_parameters(), *whole.named_buffers()]
    return {name: _fingerprint(tensor) for name, tensor in named}


def unwrapped(model: nn.Module) -> nn.Module:
    """The workload's model without what data parallelism wrapped it in."""
    wrapped = isinstance(model, DistributedDataParallel | nn.DataParallel)
    return model.get_submodule("module") if wrapped else model


def _fingerprint(tensor: Tensor) -> Fingerprint:
    if is_lazy(tensor):
        return ()
    return tuple(_sum_and_norm(part) for part in plain_tensors(tensor.detach()))


def _sum_and_norm(tensor: Tensor) -> tuple[float, float]:
    tensor = reals(tensor)
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        tensor = tensor.double()
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float(tensor.sum(dtype=torch.float64)), float(norm)
