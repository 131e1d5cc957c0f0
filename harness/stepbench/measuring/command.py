"""What `stepbench run` does: cases, machine and run put together, measured and closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import close_sweep, open_sweep, sweep, this_machine
from stepbench.measuring.team import (
    default_ranks,
    devices_here,
    dismiss,
    follow,
    leads,
    require_ranks,
    require_threads,
)
from stepbench.records.case import Case
from stepbench.records.run import Record
from stepbench.store import RunFile
from stepbench.training.choice import numbers, sweep_of
from stepbench.training.workloads import canonical, default

OUT_OF_TIME = 3
# Timed whatever they take, unless fewer are the most.
LEAST_STEPS = 5


class Watch(Protocol):
    """What is told of each record when it is there."""

    def done(self, record: Record) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure: combinations by name, and products of `choices`; see `sweep_of`.

    `workload` None is this machine's default, `ranks` None its number of ranks. A process times at
    most `steps` steps; `rounds`, `extra_rounds` and `threads` are those of `Settings`. No case is
    begun after `minutes`; a process is killed after `deadline_s`. `commit` names what is measured
    where there is no repository to ask.
    """

    combinations: Sequence[str]
    choices: Sequence[str]
    workload: str | None
    ranks: str | None
    weak: bool
    rounds: int
    extra_rounds: int
    steps: int
    threads: int
    minutes: float | None
    deadline_s: float
    commit: str | None
    results: Path

    @property
    def settings(self) -> Settings:
        """Of each case; StepbenchError where nothing could be measured so."""
        return Settings(
            rounds=self.rounds,
            extra_rounds=max(0, self.extra_rounds),
            max_steps=self.steps,
            min_steps=min(LEAST_STEPS, self.steps),
            threads=self.threads,
        )


def measure(
    asked: Asked, watched: Callable[[int], AbstractContextManager[Watch]]
) -> tuple[RunFile | None, int]:
    """The run that holds the cases, and the exit code; no run where torchrun's rank 0 has it.

    `watched` is given the number of cases. The exit code is 1 where a case has no number that it
    should have, and 3 where time ran out.

    Raises:
        StepbenchError: no such workload, technique or ranks, or nowhere to write.
    """
    if not leads():
        return None, follow()
    file, cases = _opened(asked)
    exit_code = _measured(file, cases, asked, watched)
    dismiss(exit_code)
    return file, exit_code


def _opened(asked: Asked) -> tuple[RunFile, list[Case]]:
    """The run to measure in, new or to be continued, and the cases asked for."""
    machine = this_machine()
    require_threads(asked.threads, machine, (*asked.combinations, *asked.choices))
    workload = canonical(asked.workload) if asked.workload else default(machine)
    ranks = numbers(asked.ranks) if asked.ranks is not None else [default_ranks(machine)]
    cases = sweep_of(workload, asked.combinations, asked.choices, ranks=ranks, weak=asked.weak)
    require_ranks(cases)
    gpus = devices_here(max(case.ranks for case in cases))
    file = open_sweep(
        asked.results, asked.settings, project=Path.cwd(), commit=asked.commit, gpus=gpus
    )
    return file, cases


def _measured(
    file: RunFile,
    cases: Sequence[Case],
    asked: Asked,
    watched: Callable[[int], AbstractContextManager[Watch]],
) -> int:
    """Measure the cases, and close the run if all were; the exit code."""
    began, minutes = time.monotonic(), asked.minutes
    with watched(len(cases)) as watch:
        finished = sweep(
            file,
            cases,
            deadline_s=asked.deadline_s,
            done=watch.done,
            out_of_time=lambda: minutes is not None and time.monotonic() - began > 60 * minutes,
        )
    if not finished:
        return OUT_OF_TIME
    close_sweep(file)
    return int(any(record.outcome.kind in ("oom", "failed", "invalid") for record in file.records))
