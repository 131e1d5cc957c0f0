"""How batches reach the step: worker processes, pinned memory, prefetching, persistent workers.

None of it changes what is trained: data are a function of (seed, epoch, index) only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Plan, Technique

# torch's own default, for loaders with workers.
DEFAULT_PREFETCH = 2


def _loading(**options: Any) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, loader={**plan.loader, **options})


def _proof_workers(counters: Counters, plan: Plan) -> str | None:
    expected = plan.loader.get("num_workers", 0)
    if counters.loader_processes != expected:
        return f"{counters.loader_processes} worker processes fetched batches, not {expected}"
    return None


def workers(processes: int) -> Technique:
    """`workersN`: N processes load; 0: the training process does."""
    who = "the training process" if processes == 0 else f"{processes} worker process"
    return Technique(
        name=f"workers{processes}",
        about=f"{who}es load the data" if processes > 1 else f"{who} loads the data",
        plan=_loading(num_workers=processes) if processes else lambda plan: plan,
        proof=_proof_workers,
    )


def _proof_prefetch(counters: Counters, plan: Plan) -> str | None:
    factor = plan.loader.get("prefetch_factor", DEFAULT_PREFETCH)
    # The first batch has arrived when it is looked: no epoch has more than the rest ahead.
    expected = min(plan.loader.get("num_workers", 0) * factor, counters.epoch_batches - 1)
    if counters.batches_ahead != expected:
        return f"{counters.batches_ahead} batches were under way ahead of the step, not {expected}"
    return None


def prefetch(batches: int) -> Technique:
    """`prefetchN`: each worker works N batches ahead."""
    if batches < 1:
        raise StepbenchError(f"prefetch{batches}: a worker must be at least 1 batch ahead")
    default = batches == DEFAULT_PREFETCH
    return Technique(
        name=f"prefetch{batches}",
        about=f"each worker works {batches} batch{'es' if batches > 1 else ''} ahead",
        plan=(lambda plan: plan) if default else _loading(prefetch_factor=batches),
        proof=_proof_prefetch,
    )


def _needs_a_device(case: Case, machine: Mapping[str, Any]) -> str | None:
    if device_type(machine) == "cpu":
        return "pinned memory speeds up copies to a device: a CPU has none to copy to"
    return None


def _proof_pinned(pinned: bool) -> Callable[[Counters, Plan], str | None]:
    def proof(counters: Counters, plan: Plan) -> str | None:
        if counters.pinned == pinned:
            return None
        return f"batches were {'pinned' if counters.pinned else 'in pageable memory'}"

    return proof


def _proof_persistent(persistent: bool) -> Callable[[Counters, Plan], str | None]:
    def proof(counters: Counters, plan: Plan) -> str | None:
        if counters.workers_survived == (persistent and bool(plan.loader.get("num_workers"))):
            return None
        return f"workers {'outlived' if counters.workers_survived else 'ended with'} an epoch"

    return proof


WORKERS = Axis(
    name="workers",
    baseline="workers0",
    examples=("workers0", "workers1", "workers2", "workers4", "workers8", "workers16"),
    techniques=(),
    families={"workers": workers},
)

PINNING = Axis(
    name="pinning",
    baseline="pageable",
    examples=("pageable", "pinned"),
    techniques=(
        Technique(
            name="pageable",
            about="batches in ordinary memory",
            proof=_proof_pinned(False),
        ),
        Technique(
            name="pinned",
            about="batches in page-locked memory, copied to the device without waiting",
            plan=_loading(pin_memory=True),
            unsupported=_needs_a_device,
            proof=_proof_pinned(True),
        ),
    ),
)

PREFETCH = Axis(
    name="prefetch",
    baseline=f"prefetch{DEFAULT_PREFETCH}",
    examples=("prefetch1", "prefetch2", "prefetch4", "prefetch8"),
    techniques=(),
    families={"prefetch": prefetch},
)

PERSISTENCE = Axis(
    name="persistence",
    baseline="respawn",
    examples=("respawn", "persistent"),
    techniques=(
        Technique(
            name="respawn",
            about="worker processes start anew each epoch",
            proof=_proof_persistent(False),
        ),
        Technique(
            name="persistent",
            about="worker processes live on from epoch to epoch",
            plan=_loading(persistent_workers=True),
            proof=_proof_persistent(True),
        ),
    ),
)
