"""What one step did, counted on the eager program: no clock is read here.

A dispatch mode sees every operator, recomputed ones too; it switches compilation off and costs
time, so its step is never a timed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.core import Counters
from harness.training.products import flops, is_product
from harness.training.types import Batch, Loop

# Rows of the left factor that are multiplied again in float64: enough for an error, never large.
CHECKED_ROWS = 128


def count(
    loop: Loop, blocks: list[nn.Module], step: Callable[[Loop], None], **loading: Any
) -> Counters:
    """Run `step` on the loop with everything watched, and say what happened.

    `loading` is what was observed of the loader: the fields of Counters that this cannot see.
    """
    operators = _Operators()
    recomputed = _Recomputed()
    calls: Counter[str] = Counter()
    scales: list[float] = []
    losses: list[Tensor] = []

    def forward(batch: Batch) -> Tensor:
        calls["forwards"] += 1
        with operators.held_for_backward():
            loss = loop.forward(batch)
        losses.append(loss.detach())
        return loss

    def update() -> None:
        calls["updates"] += 1
        loop.update()

    with ExitStack() as stack:
        stack.enter_context(recomputed.watch(blocks))
        stack.enter_context(_backward_roots(lambda root: scales.append(_over(root, losses[-1]))))
        stack.enter_context(operators)
        step(replace(loop, forward=forward, update=update))
    return Counters(
        forwards=calls["forwards"],
        updates=calls["updates"],
        flops=operators.flops,
        matmul_flops=dict(operators.matmul_flops),
        matmul_error=operators.matmul_error,
        operators=dict(sorted(operators.names.items())),
        saved_bytes=operators.saved_bytes,
        blocks=len(blocks),
        recomputed_blocks=tuple(recomputed.blocks),
        recomputed_products=operators.recomputed_products,
        loss_scale=max(scales, default=0.0),
        **loading,
    )


def recomputing() -> bool:
    """Whether a forward runs inside autograd's engine, which itself works without gradients."""
    return bool(torch._C._current_graph_task_id() != -1) and torch.is_grad_enabled()


class _Operators(TorchDispatchMode):
    """Counts dispatched operators and their floating-point operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.matmul_flops: Counter[str] = Counter()
        self.flops = 0
        self.matmul_error: float | None = None
        self.recomputed_products = 0
        self.saved_bytes = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[str(func._overloadpacket)] += 1
        if is_product(func):
            self._product(func, args, kwargs or {}, result)
        if self._made is not None:
            self._note_made(self._made, (args, kwargs), result)
        return result

    @staticmethod
    def _note_made(made: dict[int, Any], given: Any, result: Any) -> None:
        """Note the storages of a result, unless it is a view of a parameter or an input."""
        foreign = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(given) if isinstance(leaf, Tensor)
        } - made.keys()
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in foreign:
                    made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def _product(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        amount = flops(func, args, kwargs, result)
        factors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        self.flops += amount
        self.matmul_flops[str(factors[0].dtype).removeprefix("torch.")] += amount
        self.recomputed_products += recomputing()
        if (
            self.matmul_error is None
            and func is torch.ops.aten.mm.default
            and factors[0].dtype == torch.float32
        ):
            self.matmul_error = _error_of_product(factors[0], factors[1], result)

    @contextmanager
    def held_for_backward(self) -> Iterator[None]:
        """Count the bytes that were made in here and are still alive at the end."""
        self._made = {}
        try:
            yield
            alive = (size for reference, size in self._made.values() if not reference.expired())
            self.saved_bytes = max(self.saved_bytes, sum(alive))
        finally:
            self._made = None


class _Recomputed:
    """Notices that a block's forward runs during backward, by the first submodule it calls.

    The block's own hooks stay silent then: checkpointing calls its original forward directly.
    """

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self._first: dict[int, nn.Module] = {}

    @contextmanager
    def watch(self, blocks: list[nn.Module]) -> Iterator[None]:
        handles = []
        for index, block in enumerate(blocks):
            for part in block.modules():
                if part is not block:
                    handles.append(part.register_forward_pre_hook(self._entered(index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entered(self, index: int) -> Callable[[nn.Module, Any], None]:
        def hook(part: nn.Module, arguments: Any) -> None:
            if not recomputing():
                self._first.setdefault(index, part)
            elif part is self._first.get(index):
                self.blocks.append(index)

        return hook


@contextmanager
def _backward_roots(seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Tell the tensor that each backward pass starts from."""
    backward = torch.autograd.backward

    def watched(tensors: Any, *arguments: Any, **named: Any) -> None:
        seen(tree_leaves(tensors)[0].detach())
        backward(tensors, *arguments, **named)

    with patch.object(torch.autograd, "backward", watched):
        yield


def _over(root: Tensor, loss: Tensor) -> float:
    return float(root / loss) if float(loss) else 0.0


def _error_of_product(left: Tensor, right: Tensor, result: Tensor) -> float:
    exact = left[:CHECKED_ROWS].double() @ right.double()
    return float((result[:CHECKED_ROWS].double() - exact).norm() / exact.norm())
