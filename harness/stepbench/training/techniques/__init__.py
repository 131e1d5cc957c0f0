"""The catalogue: every axis, in the order in which techniques compose.

The order stands here once. What replaces modules comes first; checkpointing edits the blocks
before anything moves or shards them; data parallelism shards or wraps what is then whole; precision
decides what runs inside a micro-batch; accumulation decides how many there are; how data are loaded
touches none of them and comes last.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.records.case import Case, Combination
from stepbench.records.machine import device_type
from stepbench.training.incompatible import (
    INCOMPATIBLE,
    INCOMPATIBLE_ON_GPUS,
    Incompatible,
    conflict,
)
from stepbench.training.techniques.accumulation import ACCUMULATION
from stepbench.training.techniques.adapters import ADAPTERS
from stepbench.training.techniques.attention import ATTENTION
from stepbench.training.techniques.checkpointing import CHECKPOINTING
from stepbench.training.techniques.compiling import COMPILE
from stepbench.training.techniques.loading import PERSISTENCE, PINNING, PREFETCH, WORKERS
from stepbench.training.techniques.normalization import NORMALIZATION
from stepbench.training.techniques.offload import OFFLOAD
from stepbench.training.techniques.optimizers import OPTIMIZER
from stepbench.training.techniques.parallel import PARALLEL
from stepbench.training.techniques.precision import PRECISION
from stepbench.training.techniques.quantization import QUANTIZATION
from stepbench.training.techniques.stability import CLIPPING, SCHEDULE
from stepbench.training.techniques.threads import THREADS
from stepbench.training.types import Axis, Plan, Technique, Workload

AXES: tuple[Axis, ...] = (
    NORMALIZATION,
    ATTENTION,
    ADAPTERS,
    QUANTIZATION,
    CHECKPOINTING,
    COMPILE,
    OPTIMIZER,
    OFFLOAD,
    PARALLEL,
    THREADS,
    PRECISION,
    CLIPPING,
    SCHEDULE,
    ACCUMULATION,
    WORKERS,
    PINNING,
    PREFETCH,
    PERSISTENCE,
)

# How a combination is spelled, `bf16+accum4+ckpt2+ddp`: not the order in which it is composed.
SPELLING_ORDER: tuple[Axis, ...] = (
    PRECISION,
    QUANTIZATION,
    ATTENTION,
    COMPILE,
    ADAPTERS,
    OPTIMIZER,
    CLIPPING,
    SCHEDULE,
    ACCUMULATION,
    CHECKPOINTING,
    OFFLOAD,
    PARALLEL,
    THREADS,
    NORMALIZATION,
    WORKERS,
    PINNING,
    PREFETCH,
    PERSISTENCE,
)


def find(name: str) -> tuple[Axis, Technique]:
    """The technique of that name and its axis; StepbenchError naming what there is."""
    for axis in AXES:
        for technique in axis.techniques:
            if name in (technique.name, *technique.also):
                return axis, technique
    word, number = re.fullmatch(r"(.*?)(\d{0,9})", name, re.DOTALL).groups()  # type: ignore[union-attr]
    for axis in AXES:
        if number and word in axis.families:
            return axis, axis.families[word](int(number))
    raise StepbenchError(
        f"{name!r} is not a technique; there are {', '.join(known_names())} (`stepbench list`)"
    )


def known_names() -> list[str]:
    """Every technique's name, families as `accumN`."""
    return [
        name
        for axis in AXES
        for name in (
            *(technique.name for technique in axis.techniques),
            *(f"{word}N" for word in axis.families),
        )
    ]


def combine(names: Iterable[str]) -> Combination:
    """A combination from technique names in any order; baselines are dropped.

    Raises:
        StepbenchError: an unknown name, or two techniques on one axis.
    """
    chosen: dict[str, str] = {}
    for name in names:
        axis, technique = find(name)
        if axis.name in chosen:
            raise StepbenchError(
                f"{chosen[axis.name]!r} and {technique.name!r} are both on the axis {axis.name}; "
                "a combination holds one technique an axis"
            )
        chosen[axis.name] = technique.name
    return Combination(
        {
            axis.name: chosen[axis.name]
            for axis in SPELLING_ORDER
            if chosen.get(axis.name, axis.baseline) != axis.baseline
        }
    )


def parse(text: str) -> Combination:
    """A combination from its spelling, `bf16+accum4+ckpt2` or `baseline`."""
    return combine(() if text == "baseline" else text.split("+"))


def chosen_techniques(combination: Combination) -> list[Technique]:
    """One technique an axis, the baseline's where nothing was chosen, in the order of AXES."""
    return [find(combination.techniques.get(axis.name, axis.baseline))[1] for axis in AXES]


def plan_of(combination: Combination) -> Plan:
    """What the combination intends for the loop."""
    plan = Plan()
    for technique in chosen_techniques(combination):
        plan = technique.plan(plan)
    return plan


def unsupported(case: Case, machine: Mapping[str, Any]) -> str | None:
    """Why this machine cannot run the case, or None; nothing has started yet."""
    reasons = (
        not_here(technique, case, machine) for technique in chosen_techniques(case.combination)
    )
    if reason := next(filter(None, reasons), None):
        return reason
    return None if device_type(machine) == "cpu" else _conflict(INCOMPATIBLE_ON_GPUS, case)


def not_here(technique: Technique, case: Case, machine: Mapping[str, Any]) -> str | None:
    """Why this machine cannot run the technique: its hardware, or a library that is missing."""
    if reason := technique.unsupported(case, machine):
        return reason
    for module in technique.imports:
        library = module.partition(".")[0]
        if importlib.util.find_spec(library) is None:
            return f"{library} is not installed: pip install 'stepbench[{library}]'"
    return None


def inside_the_model(combination: Combination) -> tuple[str, ...]:
    """The chosen techniques of axes that act inside the model's forward and backward."""
    return tuple(
        combination.techniques[axis.name]
        for axis in AXES
        if axis.inside and axis.name in combination.techniques
    )


def imports(combination: Combination) -> tuple[str, ...]:
    """Modules of optional libraries that the combination's techniques import."""
    return tuple(
        module for technique in chosen_techniques(combination) for module in technique.imports
    )


def incompatible(workload: Workload, case: Case) -> str | None:
    """Why this workload cannot be trained as the case says, on any machine; or None."""
    reasons = (
        technique.incompatible(workload, case) for technique in chosen_techniques(case.combination)
    )
    return _conflict(INCOMPATIBLE, case) or next(filter(None, reasons), None)


def _conflict(table: Sequence[Incompatible], case: Case) -> str | None:
    baselines = {axis.name: axis.baseline for axis in AXES}
    return conflict(table, case.combination.techniques, baselines)


def tolerance(workload: Workload, combination: Combination) -> float:
    """Allowed relative difference from the reference: the sum of the techniques that have one."""
    parts = (technique.tolerance(workload) for technique in chosen_techniques(combination))
    return sum(part for part in parts if part is not None)


def other_mathematics(workload: Workload, combination: Combination) -> Combination:
    """The techniques of a combination that are other mathematics than the baseline, alone."""
    return combine(
        technique.name
        for technique in chosen_techniques(combination)
        if technique.tolerance(workload) is None
    )
