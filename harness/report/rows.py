"""One run's records as rows against their baseline: the numbers behind every table and figure.

All numbers are in base units (seconds, bytes, tokens a second). Runs are never merged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import stats
from harness.core import Calibration, Case, Compilation, Measurement, Outcome, Record, Round, Run
from harness.stats import Estimate
from harness.store import RunFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an `ok` case's rounds say; sizes and times are medians over rounds.

    `peak_bytes` is the steady step's allocated peak, `working_bytes` the part of it that is
    neither parameters nor optimizer state, `data_wait_share` the part of a step that
    waited for its batch. A record from before loading was
    observed has None for its figures.
    """

    step_s: float
    speedup: Estimate
    peak_bytes: float
    memory_ratio: Estimate
    working_bytes: float
    loss_difference: float | None  # None: the baseline was on another batch
    tokens_per_s: float
    data_wait_share: float | None
    host_bytes: float | None
    epoch_pause_s: float | None
    disturbances: tuple[str, ...]
    ranks: RankFigures | None = None
    compilation: Compilation | None = None  # of the round that took longest
    unproved: tuple[str, ...] = ()


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
    rows = [_row(record) for record in records]
    measured = [record for record in records if record.outcome.ok]
    if measured and all(row.case != baseline for row in rows):
        rows.append(_baseline_row(baseline, measured))
    processes = [process for record in measured for one in record.rounds for process in _both(one)]
    versions = (str(process.environment.get("torch", "unknown")) for process in processes)
    return Table(
        run=file.run,
        calibrations=tuple(file.calibrations),
        workload=workload,
        rows=tuple(sorted(rows, key=lambda row: row.case != baseline)),
        rounds=tuple(len(record.rounds) for record in measured),
        steps=tuple(len(process.step_s) for process in processes),
        torch_versions=tuple(dict.fromkeys(versions)),
        memory_methods=tuple(dict.fromkeys(process.memory.method for process in processes)),
    )


def _row(record: Record) -> Row:
    if not record.outcome.ok:
        return Row(case=record.case, outcome=record.outcome, figures=None)
    figures = Figures(
        **_medians([one.case for one in record.rounds]),
        speedup=stats.speedup(record),
        memory_ratio=stats.memory_ratio(record),
        loss_difference=stats.loss_difference(record) if record.case.batch_factor == 1 else None,
        disturbances=stats.disturbances(record),
        ranks=_rank_figures([one.case for one in record.rounds]),
        compilation=_slowest([one.case.compilation for one in record.rounds]),
        unproved=record.rounds[0].case.unproved,
    )
    return Row(case=record.case, outcome=record.outcome, figures=figures)


def _baseline_row(case: Case, records: Sequence[Record]) -> Row:
    """The baseline as all rounds saw it, where the run has no record of the baseline itself."""
    one = Estimate(median=1.0, low=None, high=None, rounds=sum(len(r.rounds) for r in records))
    figures = Figures(
        **_medians([each.baseline for record in records for each in record.rounds]),
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

    return {
        "step_s": median(stats.step_s),
        "peak_bytes": median(lambda process: process.memory.steady_step.allocated_bytes),
        "working_bytes": median(lambda process: process.memory.working_bytes),
        "tokens_per_s": median(lambda process: process.tokens / stats.step_s(process)),
        "data_wait_share": median(lambda one: sum(one.data_wait_s) / sum(one.step_s))
        if observed
        else None,
        "host_bytes": median(lambda one: one.host_bytes or 0) if observed else None,
        "epoch_pause_s": median(lambda one: one.epoch_pause_s or 0.0) if observed else None,
    }


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


def _slowest(each: Sequence[Compilation | None]) -> Compilation | None:
    return max(filter(None, each), key=lambda one: one.compile_s, default=None)


def _both(one: Round) -> tuple[Measurement, Measurement]:
    return one.case, one.baseline
