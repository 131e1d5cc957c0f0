"""How many threads a CPU's operators run on, in each rank.

It is a setting of the process, made before its first operator; more threads add up in another
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Plan, Technique


def _proof_of_the_run(counters: Counters, plan: Plan) -> str | None:
    if counters.ran_threads == counters.threads:
        return None
    return (
        f"operators ran on {counters.ran_threads} threads, not on {counters.threads}: the run's "
        "number of threads sets them, no call in a workload"
    )


def threads(number: int) -> Technique:
    """`threadsN`; `threads1` leaves it to the run, whose threads are 1 unless it says otherwise."""
    if number < 1:
        raise StepbenchError(f"threads{number}: an operator runs on at least 1 thread")
    if number == 1:
        return Technique(
            name="threads1",
            about="operators of a rank on one thread (or as many as the run says)",
            proof=_proof_of_the_run,
        )

    def proof(counters: Counters, plan: Plan) -> str | None:
        if counters.ran_threads == number:
            return None
        return f"operators ran on {counters.ran_threads} threads, not on {number}"

    def unsupported(case: Case, machine: Mapping[str, Any]) -> str | None:
        if device_type(machine) != "cpu":
            return f"threads{number} is about operators on a CPU: here they run on the GPU"
        if number > machine["cores"]:
            return f"threads{number} needs {number} cores, of which there are {machine['cores']}"
        return None

    return Technique(
        name=f"threads{number}",
        about=f"operators of a rank on {number} threads",
        plan=lambda plan: replace(plan, threads=number),
        proof=proof,
        unsupported=unsupported,
        # Sums in another order, as accumulation's.
        tolerance=lambda workload: 1e-3,
    )


THREADS = Axis(
    name="threads",
    baseline="threads1",
    examples=("threads1", "threads2", "threads4", "threads8"),
    techniques=(),
    families={"threads": threads},
)
