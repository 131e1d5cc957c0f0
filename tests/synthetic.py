"""Records made by hand: what matters to a test is an argument, the rest constant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepbench.records.case import Case, Combination
from stepbench.records.measurement import Counters, Measurement, Memory, Peak
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record, Round, Run
from stepbench.store import RunFile
from stepbench.versions import MEASURE_VERSION

MIB = 2**20
WORKLOAD = "gpt-1m@batch=8"
OK = Outcome(kind="ok")
AXES = {"ckpt": "checkpointing", "accum": "accumulation"}  # by word; the rest is precision

MACHINE: dict[str, Any] = {
    "name": "test-cpu-2-cores",
    "cpu": "Test CPU",
    "cores": 2,
    "memory_bytes": 8 * 2**30,
    "architecture": "x86_64",
    "instruction_set": "AVX2",
    "gpus": [],
}


def measurement(
    step_s: Sequence[float] = (0.1, 0.1, 0.1),
    *,
    peak_bytes: int = 100 * MIB,
    losses: Sequence[float] = (5.0, 4.0),
    grad_norms: Sequence[float] = (1.0, 2.0),
    disturbances: Sequence[str] = (),
    tokens: int = 1000,
    torch: str = "2.13.0+cpu",
) -> Measurement:
    """One process; 30 MiB of its peak are parameters, gradients and optimizer state."""
    peak = Peak(allocated_bytes=peak_bytes, reserved_bytes=None, process_bytes=None)
    return Measurement(
        step_s=tuple(step_s),
        cpu_s=tuple(step_s),
        window_s=sum(step_s),
        tokens=tokens,
        build_s=0.5,
        warmup_steps=5,
        steps_run=5 + len(step_s),
        overhead_s=0.2,
        losses=tuple(losses),
        grad_norms=tuple(grad_norms),
        skipped_steps=0,
        memory=Memory(
            method="test tensors",
            build=peak,
            first_step=peak,
            steady_step=peak,
            parameter_bytes=10 * MIB,
            gradient_bytes=10 * MIB,
            optimizer_bytes=10 * MIB,
        ),
        counters=Counters(
            forwards=1,
            updates=1,
            flops=1000,
            matmul_flops={"float32": 1000},
            matmul_error=1e-7,
            operators={"aten.mm": 10},
            saved_bytes=MIB,
            blocks=4,
            recomputed_blocks=(),
            recomputed_products=0,
            loss_scale=1.0,
        ),
        environment={"torch": torch, "threads": 1, "device": "cpu"},
        disturbances=tuple(disturbances),
    )


def case(names: str = "baseline", *, workload: str = WORKLOAD, ranks: int = 1) -> Case:
    """A case from its combination's spelling; axes are told by the names' words."""
    techniques = {}
    for name in names.split("+") if names != "baseline" else []:
        word = name.rstrip("0123456789").partition("-")[0]
        techniques[AXES.get(word, "precision")] = name
    return Case(workload=workload, combination=Combination(techniques), ranks=ranks)


def record(
    of: Case,
    pairs: Sequence[tuple[Measurement, Measurement]] = (),
    *,
    outcome: Outcome = OK,
) -> Record:
    """A record of (case, baseline) pairs, one a round, in balanced order."""
    rounds = tuple(
        Round(
            order="case first" if number % 4 in (0, 3) else "baseline first",
            case=mine,
            baseline=base,
        )
        for number, (mine, base) in enumerate(pairs)
    )
    return Record(case=of, outcome=outcome, rounds=rounds, measured_at="2026-01-31T12:00:00+00:00")


def run(identity: str = "20260131T120000Z-abcdef", **changes: Any) -> Run:
    """A run's header; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "id": identity,
        "started_at": "2026-01-31T12:00:00+00:00",
        "measure_version": MEASURE_VERSION,
        "machine": MACHINE,
        "commit": "0123456789abcdef",
        "edited": False,
        "software": {"torch": "2.13.0+cpu", "stepbench_digest": "0123456789abcdef"},
        "settings": {"rounds": 8},
    }
    return Run(**(fields | changes))


def run_file(records: Sequence[Record], header: Run | None = None) -> RunFile:
    """A run in memory, as if read from disk."""
    return RunFile(path=Path("run.jsonl"), run=header or run(), records=list(records))
