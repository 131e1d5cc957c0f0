"""How many elements are held and trained, and what an optimizer keeps for each of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from stepbench.measuring.probes.memory import (
    local,
    optimizer_state,
    own_optimizer,
    parameters_with_state,
    plain_tensors,
)
from stepbench.training.types import Loop

# What torchao leaves in 32 bits is smaller, or no whole number of its blocks; bitsandbytes takes
# more.
LEAST_8_BIT, BLOCK = 4096, 256


def gradients(loop: Loop) -> dict[str, int]:
    """The fields of Counters about gradients; to be called between backward and update."""
    own = [p for group in own_optimizer(loop).param_groups for p in group["params"]]
    sizes = [local(p).numel() for p in own if p.grad is not None]
    everywhere = [p for p in loop.model.parameters() if p.grad is not None]
    return {
        "updated_elements": sum(sizes),
        "sparse_gradients": sum(p.grad.is_sparse for p in everywhere if p.grad is not None),
        "large_elements": sum(n for n in sizes if n >= LEAST_8_BIT and n % BLOCK == 0),
        "gradient_elements": sum(local(p).numel() for p in everywhere),
        "trained_bytes": sum(p.numel() * p.element_size() for p in everywhere),
    }


def elements(loop: Loop, device: torch.device) -> dict[str, Any]:
    """The fields of Counters about this rank's parameters and its optimizer's state.

    `device` is what the loop computes on: state elsewhere is on the host. To be called after the
    step that was counted: the first gradient of a parameter makes its state.
    """
    groups = own_optimizer(loop).param_groups
    kept: Counter[str] = Counter()
    on_host = 0
    for name, tensor in optimizer_state(loop):
        if name != "step":
            for part in plain_tensors(tensor):
                kept[str(part.dtype).removeprefix("torch.")] += part.numel()
                on_host += part.numel() if part.device.type != device.type else 0
    return {
        "elements": sum(local(parameter).numel() for parameter in loop.model.parameters()),
        "trained_elements": sum(local(one).numel() for group in groups for one in group["params"]),
        "kept_elements": sum(local(one).numel() for one in parameters_with_state(loop)),
        "host_state_elements": on_host,
        "adapted_layers": dict(
            Counter(
                type(one.base_layer).__name__
                for one in loop.model.modules()
                if hasattr(one, "lora_A") and hasattr(one, "base_layer")
            )
        ),
        "state_elements": dict(sorted(kept.items())),
    }
