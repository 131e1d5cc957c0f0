"""One watched step, module by module: who was in training mode, and what each computed in.

Products are those of forward passes, recomputed ones left out: in a backward pass no module runs.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepbench.measuring.probes.blocks import recomputing
from stepbench.measuring.probes.memory import plain_tensors
from stepbench.measuring.probes.timed import unwrapped
from stepbench.training.data import HostBatch
from stepbench.training.products import is_batched, is_product
from stepbench.training.step import plain_loop, train_step
from stepbench.training.techniques.attention import OPERATORS
from stepbench.training.types import Loop, Site

NARROW_BYTES = 2  # of an element of float16 and bfloat16


class Modules(TorchDispatchMode):
    """What was seen of each named module that was called.

    Attributes:
        evaluating: modules that were not in training mode.
        attention_calls: calls of torch's attention by operator.
        narrow, wide, wide_batched: modules with products of at most 16 bits, of more, and with
            batched ones of more, which attention is made of where no kernel fuses it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {module: name for name, module in unwrapped(model).named_modules()}
        self._uncompiled = [
            name
            for module, name in self._names.items()
            if getattr(module.forward, "_torchdynamo_disable", False)
        ]
        # DataParallel's replicas run in threads beside each other.
        self._running: dict[int, list[str | None]] = defaultdict(list)
        self.evaluating: set[str] = set()
        self.attention_calls: Counter[str] = Counter()
        self.narrow: set[str] = set()
        self.wide: set[str] = set()
        self.wide_batched: set[str] = set()

    def fields(self, *, kernel_chosen: bool) -> dict[str, Any]:
        """The fields of Evidence that this saw; without batched products where that is so."""
        wide = self.wide if kernel_chosen else self.wide | self.wide_batched
        return {
            "evaluating": tuple(sorted(self.evaluating)),
            "attention_calls": dict(sorted(self.attention_calls.items())),
            "wide_modules": tuple(sorted(wide)),
            "uncompiled_modules": tuple(sorted(self._uncompiled)),
        }

    def entered(self, module: nn.Module, arguments: Any) -> None:
        """A module was called."""
        name = self._names.get(module)
        self._running[threading.get_ident()].append(name)
        if name is not None and not module.training:
            self.evaluating.add(name)

    def left(self, module: nn.Module, arguments: Any, result: Any) -> None:
        """Its forward has ended."""
        self._running[threading.get_ident()].pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        running = self._running[threading.get_ident()]
        if running and not recomputing():
            self._note(func, args, next(filter(None, reversed(running)), ""))
        return result

    def _note(self, func: Any, args: Any, name: str) -> None:
        operator = str(func._overloadpacket)
        if any(one in operator for one in OPERATORS):
            self.attention_calls[operator] += 1
        if is_product(func):
            factor = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            if next(plain_tensors(factor)).itemsize <= NARROW_BYTES:
                self.narrow.add(name)
            else:
                (self.wide_batched if is_batched(func) else self.wide).add(name)


@contextmanager
def watched(model: nn.Module) -> Iterator[Modules]:
    """Watch a step that runs in here eagerly."""
    seen = Modules(model)
    entering = register_module_forward_pre_hook(seen.entered)
    leaving = register_module_forward_hook(seen.left, always_call=True)
    try:
        with seen:
            yield seen
    finally:
        entering.remove()
        leaving.remove()


def narrow_under_autocast(loop: Loop, host: HostBatch, site: Site) -> tuple[str, ...]:
    """Modules of a plain model all of whose forward products autocast computes in 16 bits.

    Runs a step without an update. Of a model that autocast breaks there is nothing to say.
    """
    plan = replace(site.plan, autocast=torch.get_autocast_dtype(site.device.type))
    under = plain_loop(loop.model, loop.optimizer, replace(site, plan=plan))
    try:
        with watched(loop.model) as seen:
            train_step(replace(under, update=loop.optimizer.zero_grad), host, site)
    except Exception:
        return ()
    return tuple(sorted(seen.narrow - seen.wide - seen.wide_batched))
