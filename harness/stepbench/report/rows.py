"""One run's records as rows against their baseline: the numbers behind every table and figure.

All numbers are in base units (seconds, bytes, tokens a second). Runs are never merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepbench.metrics.beside import LOSS_DIFFERENCE, MEMORY_RATIO, SPEEDUP
from stepbench.metrics.metric import Metric
from stepbench.metrics.result import Result
from stepbench.metrics.time import budget
from stepbench.records.case import Case
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Calibration, Record, Round, Run
from stepbench.stats import measures
from stepbench.stats.measures import Estimate
from stepbench.store import RunFile

SHORT = "a window that held less than a period of its slow steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an `ok` case's rounds say: `figures[STEP_S]` is what stands for them, None if nothing.

    `amortised` says that most processes had a mean more than 5% off their median: some steps cost
    more than most. `set_aside` rounds are in no figure. `known` holds what was read before.
    """

    result: Result
    disturbances: tuple[str, ...] = ()
    set_aside: int = 0
    set_aside_because: tuple[str, ...] = ()
    unproved: tuple[str, ...] = ()
    known: dict[Metric[Any], Any] = field(default_factory=dict)

    def __getitem__(self, metric: Metric[Any]) -> Any:
        if metric not in self.known:
            self.known[metric] = metric.of(self.result)
        return self.known[metric]

    @property
    def amortised(self) -> bool:
        """Whether the median hides what a step costs."""
        processes = self.result.processes
        return 2 * sum(map(measures.is_amortised, processes)) > len(processes)

    @property
    def budget(self) -> dict[str, float] | None:
        """Seconds of the step that each part of it takes."""
        return budget(self.result.processes)


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

    @property
    def figures(self) -> tuple[Figures, ...]:
        """Those of the cases that have any."""
        return tuple(row.figures for row in self.rows if row.figures)


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
        rows.append(_baseline_row(baseline, measured, file.run.machine))
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
    result = Result.of(record, machine)
    aside = [one for one in record.rounds if one not in result.judged]
    figures = Figures(
        result=result,
        disturbances=measures.disturbances(record),
        set_aside=len(aside),
        set_aside_because=(
            *measures.disturbances(record, aside),
            *([SHORT] if any(map(measures.is_short, aside)) else []),
        ),
        unproved=record.rounds[0].case.unproved,
    )
    return Row(case=record.case, outcome=record.outcome, figures=figures)


def _baseline_row(case: Case, records: Sequence[Record], machine: Mapping[str, Any]) -> Row:
    """The baseline as all rounds saw it, where the run has no record of the baseline itself."""
    processes = tuple(each.baseline for record in records for each in record.rounds)
    one = Estimate(median=1.0, low=1.0, high=1.0, rounds=len(processes))
    figures = Figures(
        result=Result(case=case, machine=machine, processes=processes),
        known={SPEEDUP: one, MEMORY_RATIO: one, LOSS_DIFFERENCE: 0.0},
    )
    return Row(case=case, outcome=Outcome(kind="ok"), figures=figures)


def _both(one: Round) -> tuple[Measurement, Measurement]:
    return one.case, one.baseline
