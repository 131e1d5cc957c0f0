"""A workload that asks its device for more memory than any has, in one phase of training.

The allocator really fails; because the request is refused whole, no memory is taken from others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stepbench.errors import StepbenchError
from stepbench.training.types import Workload
from stepbench.training.workloads import load

# More than a process can address (128 TiB), so that no setting of overcommit grants it.
TOO_MANY_BYTES = 2**50


def workload(phase: str) -> Workload:
    """gpt-tiny that runs out of memory in `build`, `forward`, `backward` or `update`.

    Raises:
        StepbenchError: another phase.
    """
    plain = load("gpt-tiny")
    match phase:
        case "build":
            return replace(plain, model=lambda: _after_asking(plain.model))
        case "forward":
            return replace(
                plain, call=lambda model, inputs: _after_asking(lambda: plain.call(model, inputs))
            )
        case "backward":
            return replace(plain, call=_greedy_backward)
        case "update":
            return replace(plain, optimizer=lambda parameters: _GreedyUpdate(parameters, lr=1e-3))
    raise StepbenchError(f"phase={phase}: it must be build, forward, backward or update")


def _ask() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.empty(TOO_MANY_BYTES, dtype=torch.uint8, device=device)


def _after_asking(make: Callable[[], Any]) -> Any:
    _ask()
    return make()


class _AskInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _ask()
        return gradients[0]


def _greedy_backward(model: nn.Module, inputs: Tensor) -> Any:
    return _AskInBackward.apply(model(inputs))  # type: ignore[no-untyped-call]


class _GreedyUpdate(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        _ask()
        return super().step(closure)
