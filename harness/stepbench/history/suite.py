"""What a benchmark class is made of: `Cases` measures, and its `measure_…` methods tell the result.

One measurement of a case feeds all its metrics: a case's first metric measures it into the run that
the environment opened, later ones read it there. Every metric is worse when it is larger, because
ASV takes only an increase for a regression.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from asv_runner.benchmarks.track import TrackBenchmark

from stepbench.errors import StepbenchError
from stepbench.history import COMMIT, REFUSAL, RESULTS, ROUNDS, RUN, TREE
from stepbench.measuring import sweep
from stepbench.measuring.settings import Settings
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Compilation, Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record
from stepbench.stats import measures
from stepbench.store import RunFile, now
from stepbench.training.techniques import parse
from stepbench.training.workloads import canonical
from stepbench.versions import MEASURE_VERSION

Metric = Callable[..., Any]


class Measured(TrackBenchmark):  # type: ignore[misc]
    """ASV's type of the `measure_…` methods: a number or samples, made outside of ASV's loops.

    ASV takes every matching name in benchmarks/ for one, imported functions too, so the pattern is
    that of metrics only.
    """

    name_regex = re.compile(
        r"measure_(\w+_s|\w+_bytes|flops|operators|collectives|graph_breaks|recompiles)$"
    )


# How a parameter says on how many ranks.
RANKS = re.compile(r"ranks[1-9]\d*")


def metric(unit: str, kind: str) -> Callable[[Metric], Metric]:
    """Say the unit to ASV, and to the dashboard the filter to show under and that less is better.

    The dashboard takes a unit with "ops" in it, such as FLOPs, for a rate.
    """

    def mark(method: Metric) -> Metric:
        for name, value in {"unit": unit, "type": kind, "less_is_better": True}.items():
            setattr(method, name, value)
        return method

    return mark


class Cases:
    """A workload under each combination of the class's `params`: names of techniques, `ranksN`
    for the number of ranks, and parameters of the workload (`seq=128`). `batch_grows`: the global
    batch grows with the ranks. A device that `workload` does not name is not measured.

    Step times are samples, one mean a process, so ASV has statistics of them. Counts and bytes
    are plain numbers: they repeat, and as samples ASV would call no change of them significant
    below 6 rounds.
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

    @metric("seconds", "time")
    def measure_step_s(self, *techniques: str) -> dict[str, Any]:
        """One optimizer step, fetching its data included."""
        return {"samples": self._of_each_process(measures.step_s), "number": 1}

    @metric("bytes", "peakmemory")
    def measure_peak_bytes(self, *techniques: str) -> float:
        """Largest memory held by tensors in a steady step."""
        return max(self._of_each_process(lambda one: one.memory.steady_step.allocated_bytes))

    @metric("bytes", "memory")
    def measure_saved_bytes(self, *techniques: str) -> float:
        """Bytes that a forward pass keeps for the backward pass."""
        return max(self._of_each_process(lambda one: one.counters.saved_bytes))

    @metric("FLOP", "track")
    def measure_flops(self, *techniques: str) -> float:
        """Floating-point operations of one step, recomputed ones included."""
        return max(self._of_each_process(lambda one: one.counters.flops))

    @metric("calls", "track")
    def measure_operators(self, *techniques: str) -> float:
        """Operators dispatched in one step of the eager program."""
        return max(self._of_each_process(lambda one: sum(one.counters.operators.values())))

    def _of_each_process(self, figure: Callable[[Measurement], float]) -> list[float]:
        return [figure(one.case) for one in measures.judged(self.record)]


class CompileCases(Cases):
    """The same for compiled cases: what the compiler took, and where it gave up."""

    @metric("seconds", "time")
    def measure_compile_s(self, *techniques: str) -> dict[str, Any]:
        """Time in the compiler, from empty caches; no part of a step."""
        return {"samples": self._compiled(lambda one: one.compile_s), "number": 1}

    @metric("breaks", "track")
    def measure_graph_breaks(self, *techniques: str) -> float:
        """Where the compiler gave up and began anew."""
        return max(self._compiled(lambda one: one.graph_breaks))

    @metric("graphs", "track")
    def measure_recompiles(self, *techniques: str) -> float:
        """Graphs made again for a frame that was compiled before."""
        return max(self._compiled(lambda one: one.recompiles))

    def _compiled(self, figure: Callable[[Compilation], float]) -> list[float]:
        return self._of_each_process(
            lambda one: figure(one.compilation) if one.compilation else 0.0
        )


class StateCases(Cases):
    """The same for what changes parameters, gradients or optimizer state: the bytes of each."""

    @metric("bytes", "memory")
    def measure_parameter_bytes(self, *techniques: str) -> float:
        """Parameters that a rank holds between steps."""
        return max(self._of_each_process(lambda one: one.memory.parameter_bytes))

    @metric("bytes", "memory")
    def measure_gradient_bytes(self, *techniques: str) -> float:
        """Gradients that a rank holds before the update."""
        return max(self._of_each_process(lambda one: one.memory.gradient_bytes))

    @metric("bytes", "memory")
    def measure_optimizer_bytes(self, *techniques: str) -> float:
        """Optimizer state that a rank holds."""
        return max(self._of_each_process(lambda one: one.memory.optimizer_bytes))


class RankCases(StateCases):
    """The same for cases of several ranks: also what the worst rank holds, and exchanges."""

    @metric("bytes", "memory")
    def measure_build_peak_bytes(self, *techniques: str) -> float:
        """Largest memory held by tensors while the model and its optimizer are made."""
        return max(self._of_each_process(lambda one: one.memory.build.allocated_bytes))

    @metric("bytes", "memory")
    def measure_first_step_peak_bytes(self, *techniques: str) -> float:
        """Largest memory held by tensors in the first step, in which optimizer state is made."""
        return max(self._of_each_process(lambda one: one.memory.first_step.allocated_bytes))

    @metric("calls", "track")
    def measure_collectives(self, *techniques: str) -> float:
        """Collectives that a rank takes part in, in one step."""
        return max(self._of_each_process(lambda one: sum(one.counters.collective_calls.values())))

    @metric("bytes", "track")
    def measure_collective_bytes(self, *techniques: str) -> float:
        """What they work on, the whole tensor of each."""
        return max(self._of_each_process(lambda one: sum(one.counters.collective_bytes.values())))

    @metric("seconds", "time")
    def measure_exposed_communication_s(self, *techniques: str) -> float:
        """A step's time by the share of it in which a collective ran and nothing was computed."""

        def exposed_s(one: Measurement) -> float:
            told = one.communication
            return measures.step_s(one) * told.exposed_s / told.step_s if told else 0.0

        return statistics.median(self._of_each_process(exposed_s))


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
