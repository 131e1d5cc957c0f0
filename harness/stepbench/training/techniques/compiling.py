"""torch.compile of the model and of the loss: which program runs, never what it computes.

The model in place, so that blocks stay where the workload finds them. What is sharded by block is
compiled by block, inside the shards: gathering parameters cannot be traced. The loss is a graph of
its own, whatever the model is in: over a vocabulary it is as much work as several blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Loop, Loss, Plan, Site, Technique, Unsupported

BACKEND = "inductor"
# By this name dynamo tells the loss' graphs from the model's.
LOSS = "loss_of_output"
# Of the products, in graphs: recurrences and the like that dynamo gives up are told, not judged.
LEAST_SHARE = 0.25
# Fused kernels round in other places and add up in another order.
TOLERANCE = 1e-3


def _compiled(mode: str | None) -> Callable[[nn.Module, Site], nn.Module]:
    def edit(model: nn.Module, site: Site) -> nn.Module:
        blocks = site.workload.blocks(model) if site.plan.shards else []
        for part in blocks or [model]:
            _traceable(part)
            part.compile(backend=BACKEND, mode=mode)
        return model

    return edit


def _compiled_loss(mode: str | None) -> Callable[[Loss, Site], Loss]:
    def edit(loss: Loss, site: Site) -> Loss:
        # Its name is LOSS. Dynamo would not begin in a function of torch's own (`cross_entropy`).
        def loss_of_output(output: Any, targets: Any) -> Tensor:
            return loss(output, targets)

        return torch.compile(loss_of_output, backend=BACKEND, mode=mode)

    return edit


def _traceable(module: nn.Module) -> None:
    """Give a module of torch's own, `nn.Sequential`, a forward in this file.

    Dynamo traces into torch's files and never begins in one: `compile()` would do nothing.
    """
    kind = type(module)
    if kind.forward.__module__.startswith("torch."):

        def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
            return kind.forward(self, *arguments, **named)

        module.__class__ = type(f"Compiled{kind.__name__}", (kind,), {"forward": forward})


def _each_replays(loop: Loop, site: Site) -> Loop:
    """Tell CUDA graphs where a micro-batch begins: what the last one left may be overwritten."""

    @contextmanager
    def around(last: bool) -> Iterator[None]:
        torch.compiler.cudagraph_mark_step_begin()
        yield

    return replace(loop, around=(*loop.around, around))


def _proof_eager(counters: Counters, plan: Plan) -> str | None:
    if counters.compiled_calls == 0:
        return None
    return (
        f"{counters.compiled_calls} compiled graphs ran in a step: the workload compiles its own "
        "model; hand over the plain one and choose compile"
    )


def _proof_compiled(counters: Counters, plan: Plan) -> str | None:
    calls, products, skipped = (
        counters.compiled_calls,
        counters.all_products,
        counters.skipped_frames,
    )
    # One graph leaves nothing out. By block the ends of the model are; more calls than that come of
    # graph breaks; what dynamo gives up is told, not judged, while most is compiled.
    whole = not plan.shards and not skipped and calls == plan.micro_batches
    compiled = products - counters.eager_products
    if calls >= plan.micro_batches and compiled >= (1.0 if whole else LEAST_SHARE) * products:
        return None
    told = (
        f"{compiled if calls else 0} of {products} products ran in compiled graphs, of which "
        f"{calls} were called in a step of {plan.micro_batches} micro-batches"
    )
    if skipped:
        raise Unsupported(
            f"torch.compile gave up {skipped} frames of the model: {told}; "
            "TORCH_LOGS=graph_breaks says why"
        )
    return told


def _needs_a_device(case: Case, machine: Mapping[str, Any]) -> str | None:
    if device_type(machine) == "cpu":
        return "compile-overhead replays CUDA graphs: a CPU has none"
    return None


def _compile(name: str, about: str, mode: str | None, **options: Any) -> Technique:
    return Technique(
        name=name,
        about=about,
        model=_compiled(mode),
        loss=_compiled_loss(mode),
        loop=_each_replays if mode else lambda loop, site: loop,
        proof=_proof_compiled,
        # Compiled dropout draws other numbers; BatchNorm, which would not, is not told from it.
        tolerance=lambda workload: None if workload.batch_dependent else TOLERANCE,
        **options,
    )


COMPILE = Axis(
    name="compile",
    baseline="eager",
    examples=("eager", "compile", "compile-overhead", "compile-max"),
    techniques=(
        Technique(name="eager", about="operator by operator", proof=_proof_eager),
        _compile("compile", "torch.compile, fused kernels", None),
        _compile(
            "compile-overhead",
            "torch.compile that replays CUDA graphs (reduce-overhead)",
            "reduce-overhead",
            unsupported=_needs_a_device,
        ),
        _compile(
            "compile-max",
            "torch.compile that times kernels and takes the fastest (max-autotune)",
            "max-autotune",
        ),
    ),
)
