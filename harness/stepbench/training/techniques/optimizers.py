"""What updates the parameters, and what it keeps for each of them.

Hyper-parameters are the workload's own where it has such an optimizer, group by group; else those
below. Implementations of AdamW are the same mathematics as the workload's where that is AdamW;
every other optimizer is other mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stepbench.records.measurement import Counters
from stepbench.training.types import (
    Axis,
    Loop,
    MakeOptimizer,
    Plan,
    Site,
    Technique,
    Unsupported,
    Workload,
    as_it_is,
)

# Where the workload brings no optimizer of the kind.
ADAMW = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
SGD = {"lr": 0.05, "weight_decay": 0.0}
# Both libraries leave smaller tensors in 32 bits: codes and scales would hardly be smaller.
SMALLEST_8_BIT = 4096
# The same products rounded in another order: 1e-7 an update, grown over five.
TOLERANCE = 1e-4

Groups = list[dict[str, Any]]


def _groups(make: MakeOptimizer, parameters: Any, kind: type, defaults: dict[str, Any]) -> Groups:
    """The workload's own parameter groups, with its own values of `defaults` if it is a `kind`."""
    own = make(parameters)
    taken = isinstance(own, kind)
    for option in ("amsgrad", "maximize"):
        if any(group.get(option) for group in own.param_groups):
            raise Unsupported(
                f"the workload's own optimizer is {option}, which the optimizers here are not"
            )
    return [
        {"params": group["params"]}
        | {name: group[name] if taken else value for name, value in defaults.items()}
        for group in own.param_groups
    ]


def _adamw(**implementation: bool) -> Callable[[MakeOptimizer, Site], MakeOptimizer]:
    def edit(make: MakeOptimizer, site: Site) -> MakeOptimizer:
        def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
            groups = _groups(make, parameters, torch.optim.AdamW, ADAMW)
            return torch.optim.AdamW(groups, **implementation)  # type: ignore[arg-type]

        return adamw

    return edit


def _sgd(make: MakeOptimizer, site: Site) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(
        _groups(make, parameters, torch.optim.SGD, SGD), momentum=0.9
    )


def _adafactor(make: MakeOptimizer, site: Site) -> MakeOptimizer:
    # Its steps are relative to the parameters: torch's own rates, whatever the workload's are.
    return lambda parameters: torch.optim.Adafactor(_groups(make, parameters, object, {}))


def _eight_bit(library: str) -> Callable[[MakeOptimizer, Site], MakeOptimizer]:
    def edit(make: MakeOptimizer, site: Site) -> MakeOptimizer:
        def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
            if library == "torchao":
                from torchao.optim import AdamW8bit
            else:
                from bitsandbytes.optim import AdamW8bit
            groups = _groups(make, parameters, torch.optim.AdamW, ADAMW)
            largest = max(p.numel() for group in groups for p in group["params"])
            if largest < SMALLEST_8_BIT:
                raise Unsupported(
                    f"8-bit state is for tensors of {SMALLEST_8_BIT} elements or more; the "
                    f"largest that is trained here has {largest}"
                )
            return AdamW8bit(groups)  # type: ignore[no-any-return]

        return adamw

    return edit


def _eagerly(loop: Loop, site: Site) -> Loop:
    """torchao compiles its update by itself, which takes minutes: as another technique here."""

    def update() -> None:
        with torch.compiler.set_stance("force_eager"):
            loop.update()

    return replace(loop, update=update)


def _updated_by(copies: int, operator: str | None = None) -> Callable[[Counters, Plan], str | None]:
    """`copies` of every trained element in the state, and an update by such operators."""

    def proof(counters: Counters, plan: Plan) -> str | None:
        if counters.sparse_gradients:
            raise Unsupported(
                "torch's momentum of sparse gradients grows with every step: make embeddings with "
                "sparse=False"
            )
        if reason := _without_state(counters):
            return reason
        kept, expected = sum(counters.state_elements.values()), copies * counters.kept_elements
        if kept != expected:
            return f"the optimizer keeps {kept} elements, not {expected}"
        if counters.group_ranks == 0 and counters.updated_elements < counters.gradient_elements:
            return (
                f"{counters.updated_elements} elements were updated of "
                f"{counters.gradient_elements} that had a gradient"
            )
        if operator and not any(operator in name for name in counters.operators):
            return f"no operator {operator}… ran in the update"
        return None

    return proof


def _without_state(counters: Counters) -> str | None:
    """What had a gradient and no state; of all that is trained where backward moved it away."""
    moved = not counters.gradient_elements
    updated = counters.trained_elements if moved else counters.updated_elements
    if counters.kept_elements >= updated:
        return None
    return f"the optimizer keeps state for {counters.kept_elements} of {updated} elements"


def _proof_loop(counters: Counters, plan: Plan) -> str | None:
    together = ("aten._fused_adamw_", "aten._foreach_addcdiv_")
    if others := [name for name in together if name in counters.operators]:
        return f"the update ran {others[0]}, not one tensor after another"
    return _updated_by(2, "aten.addcdiv_")(counters, plan)


def _proof_sublinear(counters: Counters, plan: Plan) -> str | None:
    kept = sum(counters.state_elements.values())
    if kept < counters.kept_elements:
        return _without_state(counters)
    return (
        f"the optimizer keeps {kept} elements for {counters.kept_elements} parameters: its "
        "second moment is not factored"
    )


def _proof_8_bit(counters: Counters, plan: Plan) -> str | None:
    in_8_bits, expected = counters.state_elements.get("uint8", 0), 2 * counters.large_elements
    if in_8_bits >= max(1, expected):
        return None
    told = ", ".join(f"{n} of {kind}" for kind, n in counters.state_elements.items()) or "empty"
    return f"the optimizer's state is {told}, not {expected} elements in 8 bits"


def _proof_torchao(compiles: bool) -> Callable[[Counters, Plan], str | None]:
    """8 bits, by an update that torchao has compiled or has not."""

    def proof(counters: Counters, plan: Plan) -> str | None:
        if reason := _proof_8_bit(counters, plan):
            return reason
        if bool(counters.compiled_updates) == compiles:
            return None
        return f"{counters.compiled_updates} compiled graphs ran in the update"

    return proof


def _as_adamw(workload: Workload) -> float | None:
    return TOLERANCE if workload.optimizer_kind == "AdamW" else None


def _other(workload: Workload) -> None:
    return None


OPTIMIZER = Axis(
    name="optimizer",
    baseline="own-optimizer",
    examples=(
        "own-optimizer",
        "sgd",
        "adamw-loop",
        "adamw-foreach",
        "adamw-fused",
        "adafactor",
        "adam8bit",
        "adam8bit-compiled",
        "adam8bit-bitsandbytes",
    ),
    techniques=(
        Technique(
            name="own-optimizer",
            about="the workload's own",
            proof=as_it_is,
        ),
        Technique(
            name="sgd",
            about="stochastic gradient descent, momentum 0.9: one more copy of the parameters",
            optimizer=_sgd,
            proof=_updated_by(1),
            tolerance=_other,
        ),
        Technique(
            name="adamw-loop",
            about="AdamW, one tensor after another: two more copies",
            optimizer=_adamw(foreach=False, fused=False),
            proof=_proof_loop,
            tolerance=_as_adamw,
        ),
        Technique(
            name="adamw-foreach",
            about="AdamW, each operator on all tensors at once",
            optimizer=_adamw(foreach=True),
            proof=_updated_by(2, "aten._foreach_addcdiv_"),
            tolerance=_as_adamw,
        ),
        Technique(
            name="adamw-fused",
            about="AdamW, one kernel for the whole update",
            optimizer=_adamw(fused=True),
            proof=_updated_by(2, "aten._fused_adamw_"),
            tolerance=_as_adamw,
        ),
        Technique(
            name="adafactor",
            about="second moments by row and column only (torch's own, relative steps)",
            optimizer=_adafactor,
            proof=_proof_sublinear,
            tolerance=_other,
        ),
        Technique(
            name="adam8bit",
            about="AdamW with 8-bit state (torchao), its own compilation off",
            note="torchao compiles its update unless told not to, as here: adam8bit-compiled",
            imports=("torchao.optim",),
            optimizer=_eight_bit("torchao"),
            loop=_eagerly,
            proof=_proof_torchao(compiles=False),
            tolerance=_other,
        ),
        Technique(
            name="adam8bit-compiled",
            about="the same as torchao has it: each shape's update compiled, minutes on a CPU",
            note="torchao's default: its update is compiled",
            imports=("torchao.optim",),
            optimizer=_eight_bit("torchao"),
            proof=_proof_torchao(compiles=True),
            tolerance=_other,
        ),
        Technique(
            name="adam8bit-bitsandbytes",
            about="AdamW with 8-bit state (bitsandbytes)",
            imports=("bitsandbytes",),
            optimizer=_eight_bit("bitsandbytes"),
            proof=_proof_8_bit,
            tolerance=_other,
        ),
    ),
)
