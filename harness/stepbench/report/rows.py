"""One run's records as rows against their baseline: the numbers behind every table and figure.

All numbers are in base units (seconds, bytes, tokens a second). Runs are never merged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepbench.records.case import Case
from stepbench.records.measurement import Compilation, Counters, Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Calibration, Record, Round, Run
from stepbench.report.devices import DeviceFigures, device_figures
from stepbench.report.utilization import peak_flops_per_s, utilization
from stepbench.stats import measures
from stepbench.stats.measures import Estimate
from stepbench.store import RunFile

# What a step's time goes to, in order.
PARTS = ("data", "forward", "backward", "communication", "update", "rest")
SHORT = "a window that held less than a period of its slow steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an `ok` case's rounds say; sizes and times are medians over rounds.

    `step_s` is a process' mean step, `typical_step_s` its median one, `undelayed_step_s` the mean
    without what the process waited for a processor, where that is known. `amortised` says that most
    processes had a mean more than 5% off their median: some steps cost more than most.
    `peak_bytes` is the steady step's allocated peak, `working_bytes` the part of it that is
    neither parameters nor optimizer state, `data_wait_share` the part of a step that
    waited for its batch. `state_ratio` are the bytes of optimizer state over those of the
    parameters, `trained_share` the part of the parameters that are trained. `budget` are the
    seconds of `step_s` that each part of a step takes, "communication" being what collectives add
    to the others without being hidden. A record from before any of this was observed has None for
    its figures. `set_aside` rounds are in none of them. `utilization` is MFU and
    `hardware_utilization` HFU, where the hardware's peak is known. `growth_bytes_per_step` is what
    each step keeps, `process_peak_bytes` the process' peak with all that is no tensor.
    `cpu_speedup` is the ratio of processor time, None where the process does not spend all of it
    or another device computes. `narrow_share` is the part of the products' FLOPs that had inputs
    of 16 bits; None where there were no products.
    """

    step_s: float
    typical_step_s: float
    undelayed_step_s: float | None
    amortised: bool
    speedup: Estimate
    peak_bytes: float
    memory_ratio: Estimate
    working_bytes: float
    loss_difference: float | None  # None: the baseline was on another batch
    tokens_per_s: float
    data_wait_share: float | None
    host_bytes: float | None
    epoch_pause_s: float | None
    state_ratio: float
    trained_share: float | None
    disturbances: tuple[str, ...]
    utilization: float | None = None
    hardware_utilization: float | None = None
    set_aside: int = 0
    set_aside_because: tuple[str, ...] = ()
    device: DeviceFigures | None = None
    ranks: RankFigures | None = None
    budget: Mapping[str, float] | None = None
    compilation: Compilation | None = None  # of the round that took longest
    scaling: Scaling | None = None
    unproved: tuple[str, ...] = ()
    growth_bytes_per_step: float | None = None
    process_peak_bytes: float | None = None
    cpu_speedup: Estimate | None = None
    narrow_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the gradients fared in float16: of the process that skipped most steps.

    `loss_scale` is the factor in the counted step, `skipped_steps` of the first steps overflowed,
    `zero_gradients` is the share of the gradients' elements that were exactly 0.
    """

    loss_scale: float
    skipped_steps: int
    zero_gradients: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """Of the rank that holds most, what it holds; of rank 0, what it exchanges in a step.

    Sizes are medians over rounds. `collectives` is {kind: (calls, bytes)}. `exposed_share` is the
    part of a profiled step in which a collective ran and nothing was computed.
    """

    build_peak_bytes: float
    first_step_peak_bytes: float
    peak_bytes: float
    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    collectives: Mapping[str, tuple[int, int]]
    exposed_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case. `figures` is None unless the outcome is `ok`: a wrong number is not shown."""

    case: Case
    outcome: Outcome
    figures: Figures | None

    @property
    def name(self) -> str:
        """The combination, the number of ranks where there are several, a batch that has grown."""
        return self.case.chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One workload of one run: the baseline's row first, then the cases as they were measured."""

    run: Run
    workload: str
    rows: tuple[Row, ...]
    rounds: tuple[int, ...]  # of each ok case
    steps: tuple[int, ...]  # timed, of each process of an ok case
    calibrations: tuple[Calibration, ...]
    torch_versions: tuple[str, ...]
    threads: tuple[int, ...]  # a rank's, of the baselines on a CPU
    memory_methods: tuple[str, ...]


def tables(file: RunFile) -> list[Table]:
    """A table for each workload of a run, in the order they were first measured."""
    workloads = dict.fromkeys(record.case.workload for record in file.records)
    return [
        _table(file, name, [one for one in file.records if one.case.workload == name])
        for name in workloads
    ]


def _table(file: RunFile, workload: str, records: Sequence[Record]) -> Table:
    baseline = Case(workload=workload)
    rows = [_row(record, file.run.machine) for record in records]
    measured = [record for record in records if record.outcome.ok]
    if measured and all(row.case != baseline for row in rows):
        rows.append(_baseline_row(baseline, measured))
    processes = [process for record in measured for one in record.rounds for process in _both(one)]
    versions = (str(process.environment.get("torch", "unknown")) for process in processes)
    threads = (
        one.baseline.environment.get("threads")
        for record in measured
        for one in record.rounds
        if one.baseline.environment.get("device") == "cpu"
    )
    return Table(
        run=file.run,
        calibrations=tuple(file.calibrations),
        workload=workload,
        rows=tuple(sorted(rows, key=lambda row: row.case != baseline)),
        rounds=tuple(len(record.rounds) for record in measured),
        steps=tuple(len(process.step_s) for process in processes),
        torch_versions=tuple(dict.fromkeys(versions)),
        threads=tuple(dict.fromkeys(one for one in threads if isinstance(one, int))),
        memory_methods=tuple(dict.fromkeys(process.memory.method for process in processes)),
    )


def _row(record: Record, machine: Mapping[str, Any]) -> Row:
    if not record.outcome.ok:
        return Row(case=record.case, outcome=record.outcome, figures=None)
    judged = measures.judged(record)
    processes = [one.case for one in judged]
    aside = [one for one in record.rounds if one not in judged]
    medians = _medians(processes)
    step_s = medians["step_s"]
    figures = Figures(
        **medians,
        utilization=_utilization(record, measures.useful_flops(record), step_s, machine),
        hardware_utilization=_utilization(record, measures.hardware_flops(record), step_s, machine),
        speedup=measures.speedup(record),
        cpu_speedup=measures.cpu_speedup(record),
        memory_ratio=measures.memory_ratio(record),
        loss_difference=measures.loss_difference(record) if record.case.batch_factor == 1 else None,
        disturbances=measures.disturbances(record),
        set_aside=len(aside),
        set_aside_because=(
            *measures.disturbances(record, aside),
            *([SHORT] if any(map(measures.is_short, aside)) else []),
        ),
        device=device_figures(processes),
        ranks=_rank_figures(processes),
        budget=_budget(processes),
        compilation=_slowest([one.case.compilation for one in record.rounds]),
        scaling=_scaling(processes),
        unproved=record.rounds[0].case.unproved,
    )
    return Row(case=record.case, outcome=record.outcome, figures=figures)


def _utilization(
    record: Record, step_flops: float, step_s: float, machine: Mapping[str, Any]
) -> float | None:
    """None where it cannot be told: 8-bit layers have another peak than the precision around
    them, and the products inside fused RNNs are not counted."""
    operators = record.rounds[0].case.counters.operators
    chosen = record.case.combination.techniques
    if "quantization" in chosen or any("rnn" in name for name in operators):
        return None
    peak = peak_flops_per_s(machine, chosen.get("precision", "fp32"))
    return utilization(step_flops, step_s, record.case.ranks, peak)


def _baseline_row(case: Case, records: Sequence[Record]) -> Row:
    """The baseline as all rounds saw it, where the run has no record of the baseline itself."""
    one = Estimate(median=1.0, low=1.0, high=1.0, rounds=sum(len(r.rounds) for r in records))
    processes = [each.baseline for record in records for each in record.rounds]
    figures = Figures(
        **_medians(processes),
        budget=_budget(processes),
        speedup=one,
        memory_ratio=one,
        loss_difference=0.0,
        disturbances=(),
    )
    return Row(case=case, outcome=Outcome(kind="ok"), figures=figures)


def _medians(processes: Sequence[Measurement]) -> dict[str, Any]:
    def median(read: Callable[[Measurement], float]) -> float:
        return statistics.median(read(process) for process in processes)

    observed = all(process.data_wait_s for process in processes)
    undelayed = [measures.undelayed_step_s(process) for process in processes]
    return {
        "step_s": median(measures.step_s),
        "typical_step_s": median(measures.typical_step_s),
        "undelayed_step_s": None
        if None in undelayed
        else statistics.median(filter(None, undelayed)),
        "amortised": 2 * sum(map(measures.is_amortised, processes)) > len(processes),
        "peak_bytes": median(lambda process: process.memory.steady_step.allocated_bytes),
        "working_bytes": median(lambda process: process.memory.working_bytes),
        "tokens_per_s": median(measures.items_per_s),
        "state_ratio": median(
            lambda one: one.memory.optimizer_bytes / max(1, one.memory.parameter_bytes)
        ),
        "trained_share": _trained_share(processes[0].counters),
        "data_wait_share": median(lambda one: sum(one.data_wait_s) / sum(one.step_s))
        if observed
        else None,
        "host_bytes": median(lambda one: one.host_bytes or 0) if observed else None,
        "narrow_share": _narrow_share(processes[0].counters),
        "process_peak_bytes": median(lambda one: one.memory.process_peak_bytes or 0) or None,
        "growth_bytes_per_step": _growth_bytes_per_step(processes),
        "epoch_pause_s": median(lambda one: one.epoch_pause_s or 0.0) if observed else None,
    }


def _growth_bytes_per_step(processes: Sequence[Measurement]) -> float | None:
    """The median; None where a process does not tell."""
    told = [one.growth_bytes_per_step for one in processes]
    known = [one for one in told if one is not None]
    return statistics.median(known) if len(known) == len(told) else None


def _trained_share(counters: Counters) -> float | None:
    """By gradients: of a sharded optimizer a rank has a part. Offloaded ones are there no more."""
    trained = counters.gradient_elements or counters.trained_elements
    return trained / counters.elements if counters.elements else None


def _narrow_share(counters: Counters) -> float | None:
    total = sum(counters.matmul_flops.values())
    narrow = sum(counters.matmul_flops.get(kind, 0) for kind in ("float16", "bfloat16"))
    return narrow / total if total else None


def _budget(processes: Sequence[Measurement]) -> dict[str, float] | None:
    """Seconds of the step by part; their shares are means over rounds."""
    if not all(process.parts_s for process in processes):
        return None
    step_s = statistics.median(map(measures.step_s, processes))
    shares = [_shares(process) for process in processes]
    return {part: step_s * statistics.fmean(one.get(part, 0.0) for one in shares) for part in PARTS}


def _shares(process: Measurement) -> dict[str, float]:
    """Parts of all timed steps' time, each less what was exposed communication in it."""
    total_s = sum(process.step_s)
    shares = {part: sum(times) / total_s for part, times in process.parts_s.items()}
    exposed = process.communication.exposed_shares if process.communication else {}
    moved = {part: shares[part] * share for part, share in exposed.items()}
    kept = {part: share - moved.get(part, 0.0) for part, share in shares.items()}
    return kept | {"communication": sum(moved.values())}


def _rank_figures(processes: Sequence[Measurement]) -> RankFigures | None:
    """None where there was no process group."""
    if not all(process.communication for process in processes):
        return None

    def median(read: Callable[[Measurement], float]) -> float:
        return statistics.median(read(process) for process in processes)

    counters = processes[0].counters
    return RankFigures(
        build_peak_bytes=median(lambda one: one.memory.build.allocated_bytes),
        first_step_peak_bytes=median(lambda one: one.memory.first_step.allocated_bytes),
        peak_bytes=median(lambda one: one.memory.steady_step.allocated_bytes),
        parameter_bytes=median(lambda one: one.memory.parameter_bytes),
        gradient_bytes=median(lambda one: one.memory.gradient_bytes),
        optimizer_bytes=median(lambda one: one.memory.optimizer_bytes),
        collectives={
            kind: (calls, counters.collective_bytes[kind])
            for kind, calls in counters.collective_calls.items()
        },
        exposed_share=statistics.median(
            one.communication.exposed_s / one.communication.step_s
            for one in processes
            if one.communication
        ),
    )


def _scaling(processes: Sequence[Measurement]) -> Scaling | None:
    """None where nothing was computed in float16."""
    worst = max(processes, key=lambda one: one.skipped_steps)
    if "float16" not in worst.counters.matmul_flops:
        return None
    return Scaling(
        loss_scale=worst.counters.loss_scale,
        skipped_steps=worst.skipped_steps,
        zero_gradients=worst.counters.zero_gradients,
    )


def _slowest(each: Sequence[Compilation | None]) -> Compilation | None:
    return max(filter(None, each), key=lambda one: one.compile_s, default=None)


def _both(one: Round) -> tuple[Measurement, Measurement]:
    return one.case, one.baseline
