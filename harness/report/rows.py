"""One run's records as rows against their baseline: the numbers behind every table and figure.

All numbers are in base units (seconds, bytes, tokens a second). Runs are never merged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness import stats
from harness.core import Calibration, Case, Measurement, Outcome, Record, Round, Run
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
    loss_difference: float
    tokens_per_s: float
    data_wait_share: float | None
    host_bytes: float | None
    epoch_pause_s: float | None
    disturbances: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case. `figures` is None unless the outcome is `ok`: a wrong number is not shown."""

    case: Case
    outcome: Outcome
    figures: Figures | None

    @property
    def name(self) -> str:
        """The combination, and the number of ranks where there are several."""
        ranks = f" on {self.case.ranks} ranks" if self.case.ranks > 1 else ""
        return f"{self.case.combination}{ranks}"


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
        loss_difference=stats.loss_difference(record),
        disturbances=stats.disturbances(record),
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


def _both(one: Round) -> tuple[Measurement, Measurement]:
    return one.case, one.baseline
