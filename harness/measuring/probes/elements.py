"""How many elements are held and trained, and what an optimizer keeps for each of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from harness.measuring.probes.memory import (
    local,
    optimizer_state,
    own_optimizer,
    plain_tensors,
)
from harness.training.types import Loop


def elements(loop: Loop) -> dict[str, Any]:
    """The fields of Counters about this rank's parameters and its optimizer's state."""
    groups = own_optimizer(loop).param_groups
    kept: Counter[str] = Counter()
    for name, tensor in optimizer_state(loop):
        if name != "step":
            for part in plain_tensors(tensor):
                kept[str(part.dtype).removeprefix("torch.")] += part.numel()
    return {
        "elements": sum(local(parameter).numel() for parameter in loop.model.parameters()),
        "trained_elements": sum(local(one).numel() for group in groups for one in group["params"]),
        "state_elements": dict(sorted(kept.items())),
    }
