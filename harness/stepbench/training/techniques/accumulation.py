"""Gradient accumulation: the global batch in N micro-batches, one update at the end.

Each micro-batch's mean loss counts by its share of the loss terms, so that N unequal micro-batches
still give the full batch's gradient.
"""

from __future__ import annotations

from dataclasses import replace

from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Plan, Technique, Workload


def _proof(counters: Counters, plan: Plan) -> str | None:
    if (counters.forwards, counters.updates) != (plan.micro_batches, 1):
        return (
            f"a step ran {counters.forwards} micro-batches and {counters.updates} updates, "
            f"not {plan.micro_batches} and 1"
        )
    if abs(counters.shares - 1.0) > 1e-6:
        return f"the micro-batches' shares of the loss sum to {counters.shares:g}, not to 1"
    return None


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def accumulate(micro_batches: int) -> Technique:
    """`accumN`; whether N divides the global batch is known only beside a workload."""
    if micro_batches < 1:
        raise StepbenchError(f"accum{micro_batches}: micro-batches must be at least 1")

    def incompatible(workload: Workload, case: Case) -> str | None:
        batch, rest = divmod(workload.global_batch, case.ranks)
        if rest:
            return (
                f"{case.ranks} ranks do not divide {workload.name}'s global batch of "
                f"{workload.global_batch}; choose from {_divisors(workload.global_batch)}"
            )
        if batch % micro_batches == 0:
            return None
        whose = f"a rank's {batch} samples of " if case.ranks > 1 else ""
        return (
            f"accum{micro_batches} does not divide {whose}{workload.name}'s global batch of "
            f"{workload.global_batch}; choose N from {_divisors(batch)}"
        )

    def tolerance(workload: Workload) -> float | None:
        if micro_batches == 1:
            return 0.0
        # Sums in another order: 2e-7 a gradient in float32, grown over five updates.
        return None if workload.batch_dependent else 1e-3

    return Technique(
        name=f"accum{micro_batches}",
        about=f"global batch in {micro_batches} micro-batches"
        if micro_batches > 1
        else "global batch at once",
        plan=lambda plan: replace(plan, micro_batches=micro_batches),
        proof=_proof,
        incompatible=incompatible,
        tolerance=tolerance,
    )


ACCUMULATION = Axis(
    name="accumulation",
    baseline="accum1",
    examples=("accum1", "accum2", "accum4", "accum8"),
    techniques=(),
    families={"accum": accumulate},
)
