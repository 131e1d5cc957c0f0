"""What a benchmark class is made of: `Cases` measures, and its `measure_…` methods tell the result.

One measurement of a case feeds all its metrics: a case's first metric measures it into the run that
the environment opened, later ones read it there. Every metric is worse when it is larger, because
ASV takes only an increase for a regression.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from asv_runner.benchmarks.track import TrackBenchmark

from stepbench.errors import StepbenchError
from stepbench.history import COMMIT, REFUSAL, RESULTS, ROUNDS, RUN, TREE
from stepbench.measuring import sweep
from stepbench.measuring.settings import Settings
from stepbench.metrics.catalogue import COUNTS
from stepbench.metrics.counts import COLLECTIVE_BYTES, COLLECTIVES, FLOPS, OPERATORS
from stepbench.metrics.memory import (
    BUILD_PEAK_BYTES,
    FIRST_STEP_PEAK_BYTES,
    GRADIENT_BYTES,
    OPTIMIZER_BYTES,
    PARAMETER_BYTES,
    PEAK_BYTES,
    SAVED_BYTES,
)
from stepbench.metrics.metric import Metric
from stepbench.metrics.summary import all_known
from stepbench.metrics.time import (
    COMPILE_S,
    EXPOSED_COMMUNICATION_S,
    GRAPH_BREAKS,
    RECOMPILES,
    STEP_S,
)
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record
from stepbench.stats import measures
from stepbench.store import RunFile, now
from stepbench.training.techniques import parse
from stepbench.training.workloads import canonical
from stepbench.versions import MEASURE_VERSION

Tracked = TypeVar("Tracked", bound="Cases")


class Measured(TrackBenchmark):  # type: ignore[misc]
    """ASV's type of the `measure_…` methods: a number or samples, made outside of ASV's loops.

    ASV takes every matching name in benchmarks/ for one, imported functions too, so the pattern is
    that of metrics only.
    """

    name_regex = re.compile(rf"measure_(\w+_s|\w+_bytes|{'|'.join(COUNTS)})$")

    def __init__(self, name: str, func: Callable[..., Any], attr_sources: list[Any]) -> None:
        super().__init__(name, func, attr_sources)
        if (revision := getattr(func, "revision", 1)) > 1:
            self.version: str = f"{self.version}, revision {revision}"


# How a parameter says on how many ranks.
RANKS = re.compile(r"ranks[1-9]\d*")


# The filter under which ASV's dashboard shows a unit; the others are counts.
KINDS = {"seconds": "time", "bytes": "memory"}


def tracks(*metrics: Metric[Measurement]) -> Callable[[type[Tracked]], type[Tracked]]:
    """Give a class ASV's method of each metric: `measure_` and its key.

    Less is said to be better: the dashboard takes a unit with "ops" in it, such as FLOPs, for a
    rate.

    Raises:
        ValueError: a metric that is not for ASV.
    """

    def give(of: type[Tracked]) -> type[Tracked]:
        for metric in metrics:
            setattr(of, f"measure_{metric.key}", _method(metric))
        return of

    return give


def _method(metric: Metric[Measurement]) -> Callable[..., Any]:
    if metric.asv is None:
        raise ValueError(f"{metric.key} is not a metric that ASV tracks")

    def measure(self: Cases, *techniques: str) -> Any:
        return _tracked(metric, self.record)

    measure.__name__ = f"measure_{metric.key}"
    measure.__doc__ = metric.about
    kind = KINDS.get(metric.unit, "track")
    vars(measure).update(unit=metric.unit, type=kind, less_is_better=True, revision=metric.revision)
    return measure


def _tracked(metric: Metric[Measurement], record: Record) -> float | dict[str, Any]:
    """What ASV stores of a record; NaN, as of a case that was skipped, where it was not observed.

    Only samples have statistics in ASV. Counts and bytes are plain numbers: they repeat, and as
    samples ASV would call no change of them significant below 6 rounds.
    """
    known = all_known(metric.read(one.case) for one in measures.judged(record))
    if known is None:
        return math.nan
    if metric.asv == "samples":
        return {"samples": known, "number": 1}
    return max(known) if metric.asv == "largest" else statistics.median(known)


@tracks(STEP_S, PEAK_BYTES, SAVED_BYTES, FLOPS, OPERATORS)
class Cases:
    """A workload under each combination of the class's `params`: names of techniques, `ranksN`
    for the number of ranks, and parameters of the workload (`seq=128`). `batch_grows`: the global
    batch grows with the ranks. A device that `workload` does not name is not measured.

    Its methods are those of the metrics that it `tracks`, read from one record.
    """

    workload: str | Mapping[str, str]  # a spelling, or {device type: spelling}
    batch_grows = False
    record: Record

    @property
    def version(self) -> str:
        """Results are one series as long as the ruler and the workload stay."""
        spelled = self.workload
        if not isinstance(spelled, str):
            spelled = ", ".join(f"{device} {text}" for device, text in sorted(spelled.items()))
        return f"ruler {MEASURE_VERSION}: {spelled}"

    def setup(self, *techniques: str) -> None:
        """Have the case measured.

        Raises:
            NotImplementedError: `oom`, `unsupported`, or a commit that cannot be measured so; ASV
                stores NaN.
            StepbenchError: `invalid` or `failed`; ASV stores null.
        """
        if refusal := os.environ.get(REFUSAL):
            raise NotImplementedError(refusal)
        try:
            self.record = self._measured(techniques)
        except StepbenchError:
            sys.tracebacklimit = 0  # ASV prints where it was raised; its line says all
            raise

    def _measured(self, techniques: tuple[str, ...]) -> Record:
        file = _run_file()
        options = [name for name in techniques if "=" in name]
        names = [name for name in techniques if name not in options and not RANKS.fullmatch(name)]
        ranks = next((int(name[5:]) for name in techniques if RANKS.fullmatch(name)), 1)
        try:
            combination = parse("+".join(names))
        except StepbenchError as error:  # an older commit lacks it; a test knows today's names
            raise NotImplementedError(str(error)) from None
        spelled = self.workload
        if not isinstance(spelled, str):
            device = device_type(file.run.machine)
            if device not in spelled:
                raise NotImplementedError(f"not measured on {device}: {', '.join(spelled)} only")
            spelled = spelled[device]
        if options:
            spelled = f"{spelled}{',' if '@' in spelled else '@'}{','.join(options)}"
        case = Case(
            workload=spelled,
            combination=combination,
            ranks=ranks,
            batch_factor=ranks if self.batch_grows else 1,
        )
        try:
            case = replace(case, workload=canonical(spelled))
        except StepbenchError as error:  # the commit lacks it, or what it imports
            record = file.find(case) or _lacking(file, case, str(error))
        else:
            record = sweep.measure_once(file, case)
        if record.outcome.kind in ("oom", "unsupported"):
            raise NotImplementedError(f"{case}: {record.outcome}")
        if not record.outcome.ok:
            raise StepbenchError(f"{case}: {record.outcome}")
        return record


@tracks(COMPILE_S, GRAPH_BREAKS, RECOMPILES)
class CompileCases(Cases):
    """The same for compiled cases: what the compiler took, and where it gave up."""


@tracks(PARAMETER_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES)
class StateCases(Cases):
    """The same for what changes parameters, gradients or optimizer state: the bytes of each."""


@tracks(
    *(BUILD_PEAK_BYTES, FIRST_STEP_PEAK_BYTES),
    *(COLLECTIVES, COLLECTIVE_BYTES, EXPOSED_COMMUNICATION_S),
)
class RankCases(StateCases):
    """The same for cases of several ranks: also what the worst rank holds, and exchanges."""


def _lacking(file: RunFile, case: Case, reason: str) -> Record:
    outcome = Outcome(kind="unsupported", reason=reason)
    record = Record(case=case, outcome=outcome, rounds=(), measured_at=now())
    file.add(record)
    return record


def _run_file() -> RunFile:
    """The run to record in, which the commit's first case opens: its own code does."""
    if RUN not in os.environ:
        raise StepbenchError(
            f'{RUN} is not set: start benchmarks by `asv run` in the environment "checkout"'
        )
    opened = Path(os.environ[RUN])
    if opened.exists():
        return RunFile.read(Path(opened.read_text(encoding="utf-8")))[0]
    file = sweep.open_sweep(
        Path(os.environ[RESULTS]),
        Settings(rounds=int(os.environ[ROUNDS])),
        project=Path(os.environ[TREE]),
        commit=os.environ[COMMIT],
    )
    opened.write_text(str(file.path), encoding="utf-8")
    return file
