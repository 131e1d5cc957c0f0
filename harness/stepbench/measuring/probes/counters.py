"""What one step did, counted on the eager program: no clock is read here.

A dispatch mode sees every operator, recomputed ones too; it switches compilation off and costs
time, so its step is never a timed one.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from stepbench.measuring.probes.blocks import block_passes, recomputing
from stepbench.measuring.probes.elements import gradients
from stepbench.measuring.probes.memory import entries, local, plain_tensors, reals
from stepbench.measuring.probes.parity import whole_norm
from stepbench.measuring.probes.rounding import Rounding
from stepbench.records.measurement import Counters
from stepbench.training.products import (
    flops,
    is_batched,
    is_product,
    recomputed_score_flops,
)
from stepbench.training.types import Batch, Loop

# How the names of torch's operators begin, by the kind of collective that they run.
_COLLECTIVES = {
    "all_reduce": ("allreduce", "all_reduce"),
    "all_gather": ("allgather", "all_gather"),
    "reduce_scatter": ("reduce_scatter",),
    "broadcast": ("broadcast",),
    "all_to_all": ("alltoall", "all_to_all"),
}


def count(loop: Loop, step: Callable[[Loop], None], **known: Any) -> Counters:
    """Run `step` on the loop with everything watched, and say what happened.

    `known` are the fields of Counters that this cannot see, such as what was observed of the
    loader.
    """
    operators = _Operators()
    calls: Counter[str] = Counter()
    scales: list[float] = []
    shares: list[float] = []
    losses: list[Tensor] = []
    norms: list[float | None] = []
    held: dict[str, Any] = {}

    def forward(batch: Batch) -> Tensor:
        calls["forwards"] += 1
        shares.append(batch.share)
        with operators.held_for_backward(loop.model):
            loss = loop.forward(batch)
        losses.append(loss.detach())
        return loss

    def update() -> None:
        calls["updates"] += 1
        frozen = (one for one in loop.model.parameters() if not one.requires_grad)
        calls["frozen_gradients"] += sum(one.grad is not None for one in frozen)
        with _disable_current_modes():
            norms.append(_unscaled_norm(loop))
            held.update(gradients(loop), bucketed_gradients=_bucketed(loop.model))
        loop.update()

    before, scale = _checksums(loop.model), loop.loss_scale()
    with ExitStack() as stack:
        applied = stack.enter_context(_applied(loop))
        passes = stack.enter_context(block_passes(loop.blocks))
        stack.enter_context(_backward_roots(lambda root: scales.append(_over(root, losses[-1]))))
        stack.enter_context(operators)
        step(replace(loop, forward=forward, update=update))
    return Counters(
        forwards=calls["forwards"],
        updates=calls["updates"],
        frozen_gradients=calls["frozen_gradients"],
        shares=sum(shares),
        parameters_changed=_checksums(loop.model) != before or loop.loss_scale() < scale,
        flops=operators.flops,
        matmul_flops=dict(operators.matmul_flops),
        batched_flops=dict(operators.batched_flops),
        matmul_error=operators.rounding.worst,
        operators=dict(sorted(operators.names.items())),
        saved_bytes=operators.saved_bytes,
        saved_host_bytes=operators.saved_host_bytes,
        gradient_norm=next(filter(_is_finite, norms), None),
        applied_norm=next((norm for norm, _ in applied if _is_finite(norm)), None),
        zero_gradients=next((zeros for _, zeros in applied), 0.0),
        blocks=len(loop.blocks),
        forward_blocks=tuple(passes.forward),
        backward_blocks=tuple(passes.backward),
        recomputed_blocks=tuple(passes.recomputed),
        recomputed_products=operators.recomputed_products,
        recomputed_flops=operators.recomputed_flops,
        recomputed_score_flops=operators.recomputed_score_flops,
        loss_scale=max(scales, default=0.0),
        replicas=len(operators.devices),
        group_ranks=dist.get_world_size() if dist.is_initialized() else 0,
        **_reducer(loop.model),
        sharded_parameters=sum(isinstance(p, DTensor) for p in loop.model.parameters()),
        collective_calls=dict(operators.collective_calls),
        collective_bytes=dict(operators.collective_bytes),
        **held,
        **known,
    )


class _Operators(TorchDispatchMode):
    """Counts dispatched operators, their floating-point operations, and collectives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.matmul_flops: Counter[str] = Counter()
        self.batched_flops: Counter[str] = Counter()
        self.collective_calls: Counter[str] = Counter()
        self.collective_bytes: Counter[str] = Counter()
        self.devices: set[torch.device] = set()  # where products ran
        self.flops = 0
        self.rounding = Rounding()
        self.recomputed_products = self.recomputed_flops = self.recomputed_score_flops = 0
        self.saved_bytes = 0
        self.saved_host_bytes = 0
        self._made: dict[int, tuple[StorageWeakRef, int, str]] | None = None
        # DataParallel's replicas run in threads beside each other, forward and backward.
        self._one_thread = threading.Lock()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with self._one_thread:
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.names[str(func._overloadpacket)] += 1
        if is_product(func):
            self._product(func, args, kwargs, result)
        if func.namespace in ("c10d", "_c10d_functional"):
            self._collective(func, (args, kwargs, result))
        if self._made is not None:
            self._note_made(self._made, (args, kwargs), result)

    @staticmethod
    def _note_made(made: dict[int, Any], given: Any, result: Any) -> None:
        """Note the storages of a result, unless it is a view of a parameter or an input."""
        foreign = {part.untyped_storage()._cdata for part in _parts(given)} - made.keys()
        for part in _parts(result):
            storage = part.untyped_storage()
            if storage._cdata not in foreign:
                made[storage._cdata] = (
                    StorageWeakRef(storage),
                    storage.nbytes(),
                    storage.device.type,
                )

    def _collective(self, func: Any, touched: Any) -> None:
        name = func._overloadpacket.__name__.lstrip("_")
        kind = next((kind for kind, begin in _COLLECTIVES.items() if name.startswith(begin)), None)
        if kind is None:  # waiting, wrapping
            return
        self.collective_calls[kind] += 1
        if (
            self._made is not None
        ):  # gathered for a moment, however long a backend's thread holds it
            for leaf in tree_leaves(touched):
                if isinstance(leaf, Tensor):
                    self._made.pop(leaf.untyped_storage()._cdata, None)
        # The whole tensor, which is either given or made, is the largest of those that it touches;
        # where there are several of one side, as in coalesced calls, they are one list.
        sizes = [_payload_bytes(side) for side in tree_leaves(touched, is_leaf=_is_side)]
        self.collective_bytes[kind] += max(sizes)

    def _product(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        amount = flops(func, args, kwargs, result)
        factors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        self.flops += amount
        self.recomputed_score_flops += recomputed_score_flops(func, args, kwargs, result)
        self.devices.add(factors[0].device)
        # A tensor that is made of others has the type that it stands for: 8-bit codes, float32.
        kind = next(plain_tensors(factors[0])).dtype
        name = str(kind).removeprefix("torch.")
        self.matmul_flops[name] += amount
        if is_batched(func):
            self.batched_flops[name] += amount
        if recomputing():
            self.recomputed_products += 1
            self.recomputed_flops += amount
        if kind == torch.float32:
            self.rounding.look(func, args, kwargs, result)

    @property
    def _on_a_device(self) -> bool:
        return any(device.type != "cpu" for device in self.devices)

    @contextmanager
    def held_for_backward(self, model: nn.Module) -> Iterator[None]:
        """Count the bytes that were made in here, are still alive at the end, and no parameter's.

        Parameters are made in here where they are gathered for it.
        """
        self._made = {}
        try:
            yield
            for parameter in model.parameters():
                self._made.pop(local(parameter).untyped_storage()._cdata, None)
            alive: Counter[str] = Counter()
            for reference, size, device in self._made.values():
                alive[device] += 0 if reference.expired() else size
            elsewhere = alive.pop("cpu", 0) if self._on_a_device else 0
            self.saved_bytes = max(self.saved_bytes, alive.total())
            self.saved_host_bytes = max(self.saved_host_bytes, elsewhere)
        finally:
            self._made = None


@contextmanager
def _backward_roots(seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Tell the tensor that each backward pass starts from."""
    backward = torch.autograd.backward

    def watched(tensors: Any, *arguments: Any, **named: Any) -> None:
        seen(tree_leaves(tensors)[0].detach())
        backward(tensors, *arguments, **named)

    with patch.object(torch.autograd, "backward", watched):
        yield


@contextmanager
def _applied(loop: Loop) -> Iterator[list[tuple[float, float]]]:
    """Collect norm and share of zeros of the gradients that each update is given, clipped ones
    clipped."""
    seen: list[tuple[float, float]] = []
    step = loop.optimizer.step

    @wraps(step)
    def watched(*arguments: Any, **named: Any) -> Any:
        with _disable_current_modes():
            scale = getattr(loop.optimizer, "grad_scale", None)
            norm = float(whole_norm(loop.model)) / (1.0 if scale is None else float(scale))
            seen.append((norm, _share_of_zeros(loop.model)))
        return step(*arguments, **named)

    with patch.object(loop.optimizer, "step", watched):
        yield seen


def _bucketed(model: nn.Module) -> int:
    gradients = (local(entries(p.grad)) for p in model.parameters() if p.grad is not None)
    held = Counter(one.untyped_storage().data_ptr() for one in gradients)
    return sum(gradients for gradients in held.values() if gradients > 1)


def _reducer(model: nn.Module) -> dict[str, Any]:
    """What DDP's reducer says of itself."""
    if not isinstance(model, DistributedDataParallel):
        return {}
    said = model._get_ddp_logging_data()
    return {
        "bucket_view": bool(said.get("gradient_as_bucket_view")),
        "static_graph": bool(said.get("static_graph")),
        "finds_unused": bool(said.get("find_unused_parameters")),
    }


def _unscaled_norm(loop: Loop) -> float | None:
    if all(parameter.grad is None for parameter in loop.model.parameters()):
        return None
    return float(whole_norm(loop.model)) / loop.loss_scale()


def _is_finite(norm: float | None) -> bool:
    return norm is not None and math.isfinite(norm)


def _share_of_zeros(model: nn.Module) -> float:
    gradients = [local(entries(p.grad)) for p in model.parameters() if p.grad is not None]
    elements = sum(one.numel() for one in gradients)
    nonzero = sum(int(one.count_nonzero()) for one in gradients)
    return 1.0 - nonzero / elements if elements else 0.0


def _over(root: Tensor, loss: Tensor) -> float:
    return float(root / loss) if float(loss) else 0.0


def _checksums(model: nn.Module) -> list[float]:
    parameters = (local(p.detach()) for p in model.parameters() if p.requires_grad)
    return [float(reals(one).double().sum()) for one in parameters]


def _parts(nested: Any) -> Iterator[Tensor]:
    """The tensors that hold storages, in what an operator was given or made."""
    for leaf in tree_leaves(nested):
        if isinstance(leaf, Tensor):
            yield from plain_tensors(leaf) if leaf.is_sparse else (leaf,)


def _is_side(part: Any) -> bool:
    return isinstance(part, Tensor | list)


def _payload_bytes(side: Any) -> int:
    tensors = (leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
