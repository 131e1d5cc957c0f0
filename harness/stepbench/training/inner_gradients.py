"""Gradients that a model takes inside its forward, as a penalty on gradients does.

FSDP2 takes the first backward pass that comes for the step's own: it frees the parameters, which
the rest of the forward and the second backward still need. What that reads is freed memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._guards import TracingContext

from stepbench.training.types import Batch, Loop, Unsupported


def refused(loop: Loop) -> Loop:
    """The loop, whose first forward raises Unsupported if it takes a gradient."""
    looked = False

    def forward(batch: Batch) -> Tensor:
        nonlocal looked
        if looked:
            return loop.forward(batch)
        looked = True
        with _refusing():
            return loop.forward(batch)

    return replace(loop, forward=forward)


@contextmanager
def _refusing() -> Iterator[None]:
    run_backward = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def refuse(*arguments: Any, **named: Any) -> Any:
        if TracingContext.try_get() is not None:  # the compiler derives a graph's backward pass
            return run_backward(*arguments, **named)
        raise Unsupported(
            "the model takes a gradient inside its forward, after which FSDP2 frees what the rest "
            "of it needs: choose ddp or zero1"
        )

    # Both `torch.autograd.grad` and `backward` end in it, however a model has imported them.
    with patch.object(torch.autograd, "_engine_run_backward", refuse):
        yield
