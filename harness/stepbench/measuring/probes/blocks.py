"""Which of the model's repeated blocks a step went through: forward, backward, and forward again.

Watched in the classes that define the blocks' forwards: checkpointing calls those directly, where
no hook of the block is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def recomputing() -> bool:
    """Whether a forward runs inside autograd's engine, which itself works without gradients."""
    return bool(torch._C._current_graph_task_id() != -1) and torch.is_grad_enabled()


@dataclass(slots=True)
class Passes:
    """Indices of blocks in the order in which they ran, an entry for each time.

    `backward`: whose output was given a gradient; `recomputed`: whose forward ran again for it.
    """

    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    recomputed: list[int] = field(default_factory=list)

    def note(self, index: int, output: Any) -> None:
        """Note a block that has run forward, and its output's gradient when it comes."""
        self.forward.append(index)
        reached: set[int] = set()

        def given(gradient: Tensor) -> None:
            # Of several outputs the first counts, in each backward pass: a gradient of a gradient
            # comes in a second one.
            if (backward := torch._C._current_graph_task_id()) not in reached:
                reached.add(backward)
                self.backward.append(index)

        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(given)


@contextmanager
def block_passes(blocks: Sequence[nn.Module]) -> Iterator[Passes]:
    """Collect what the blocks do meanwhile."""
    passes = Passes()
    indices = {id(block): index for index, block in enumerate(blocks)}
    running: set[int] = set()

    def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *arguments: Any, **named: Any) -> Any:
            if id(self) not in indices or id(self) in running:
                return forward(self, *arguments, **named)
            again = recomputing()
            if again:
                passes.recomputed.append(indices[id(self)])
            running.add(id(self))
            try:
                output = forward(self, *arguments, **named)
            finally:
                running.discard(id(self))
            # A block that hands on what it was given ran inside the one before it.
            if not again and not any(output is one for one in arguments):
                passes.note(indices[id(self)], output)
            return output

        return call

    kinds = {kind for block in blocks for kind in type(block).__mro__ if "forward" in vars(kind)}
    with ExitStack() as stack:
        for kind in kinds - {nn.Module}:
            stack.enter_context(patch.object(kind, "forward", watched(vars(kind)["forward"])))
        yield passes
