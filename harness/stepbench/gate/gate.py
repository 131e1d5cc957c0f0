"""`stepbench gate`: is one source tree heavier, busier or slower than another, case by case?

First the figures that no clock touches, then time in pairs under the staged rule. All cases go
through a stage before the next begins, since their p values are judged together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from stepbench.gate import pins
from stepbench.gate.comparison import STOPPED, Trial
from stepbench.gate.pace import Pace
from stepbench.gate.trees import Tree
from stepbench.measuring.pairs import PairedRunner
from stepbench.measuring.settings import Settings
from stepbench.records.case import Case
from stepbench.records.pair import LOG_RATIOS, Figure, Order, Side
from stepbench.records.verdict import CaseVerdict, Gate, Stage
from stepbench.stats.noise import most_measured
from stepbench.stats.rule import WANTED, Mask, Numbers, StagedRule
from stepbench.store import now
from stepbench.versions import MEASURE_VERSION

# A process of the tallies or of a pair of whole processes.
SETTINGS = Settings(rounds=1)
DECIDED = "counters had decided before"
Time = Literal["blocking", "advisory", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a gate measures and what its result means.

    `time`: whether time is measured, and then whether it decides. `fail_fast`: none is measured
    once a case's counters have decided. `minutes`: measuring ends after so many. `strict`: what
    is undecided by then fails. `intended`: counters whose difference is told and fails nothing.
    """

    time: Time = "blocking"
    fail_fast: bool = False
    minutes: float = math.inf
    strict: bool = False
    intended: tuple[str, ...] = ()


class _OutOfTime(Exception):
    """The minutes that were allowed are over."""


class Session:
    """One run of the gate; `told()` says what is known at any moment, however `run` ended."""

    def __init__(
        self,
        reference: Tree,
        candidate: Tree,
        cases: Sequence[Case],
        machine: Mapping[str, Any],
        *,
        terms: Terms = Terms(),
        settings: Settings = SETTINGS,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._trees, self._machine, self._settings = (reference, candidate), machine, settings
        self._terms, self._tell, self._began = terms, tell, now()
        self._deadline_s = time.monotonic() + 60 * terms.minutes
        self._trials = [Trial(case, machine, self._begins) for case in cases]
        self._ruled = StagedRule(1, [one.minimum_effect for one in self._trials])

    def run(self) -> None:
        """Measure.

        Raises:
            StepbenchError: a tree's code does not start, or measures by another ruler.
        """
        try:
            self._count()
            if self._terms.time != "off":
                self._ruled = StagedRule(1, [one.minimum_effect for one in self._trials])
                self._ruled.run(self._measure)
        except _OutOfTime as out:
            self._stop(str(out))
        except BaseException:
            self._stop(STOPPED)
            raise

    def _count(self) -> None:
        with self._start() as runner:
            for trial in self._trials:
                self._in_time()
                self._tell(f"{trial.case}: counting")
                trial.count(runner, self._tell)
        if self._terms.fail_fast and any(one.fails for one in self._verdicts()):
            self._stop(DECIDED)

    def _measure(self, stage: Stage, wanted: Mask) -> dict[Figure, Numbers]:
        """The pairs that the rule wants, measured case by case; none once time is over."""
        asked = [
            trial
            for trial, want in zip(self._trials, wanted[0], strict=True)
            if want and trial.going_on
        ]
        known = WANTED["screen"] if stage == "measure" else 0
        self._pace = Pace(self._tell, len(asked), WANTED[stage] - known)
        for trial in asked:
            self._pace.turn_to(trial.case)
            try:
                self._in_time()  # before both sides' interpreters are started
                trial.measure(stage, self._start)
            except _OutOfTime as out:
                trial.stop(str(out))
        each = [one.log_ratios(stage) if one.going_on else {} for one in self._trials]
        missing = np.full(most_measured(WANTED[stage]), np.nan)
        return {
            figure: np.stack([[ratios.get(figure, missing) for ratios in each]])
            for figure in LOG_RATIOS
        }

    def _begins(self, done: int, wanted: int) -> None:
        self._in_time()
        self._pace.begins(done, wanted)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise _OutOfTime(f"the {self._terms.minutes:g} minutes that were allowed were over")

    def _stop(self, reason: str) -> None:
        """No case that is undecided is measured further."""
        for trial, verdict in zip(self._trials, self._ruled.verdicts[0], strict=True):
            undecided = verdict in ("not enough data", "suspect")
            if not trial.counted or (undecided and self._terms.time != "off"):
                trial.stop(reason)

    @property
    def measured_any(self) -> bool:
        """Whether there is anything to tell."""
        return any(trial.counted for trial in self._trials)

    def told(self) -> Gate:
        """The result so far."""
        return Gate(
            reference=self._trees[0].name,
            candidate=self._trees[1].name,
            started_at=self._began,
            machine=self._machine,
            torch=torch.__version__,
            measure_version=MEASURE_VERSION,
            timed=self._terms.time != "off",
            cases=self._verdicts(),
            strict=self._terms.strict,
            pins=pins.changed(*(tree.pins for tree in self._trees)),
        )

    def _verdicts(self) -> tuple[CaseVerdict, ...]:
        advisory = self._terms.time == "advisory"
        return tuple(
            replace(
                trial.told(self._ruled, index), advisory=advisory, intended=self._terms.intended
            )
            for index, trial in enumerate(self._trials)
        )

    def _start(self, begins: Order = "reference first") -> PairedRunner:
        """Both sides' interpreters, started anew: what one's memory favours is not there again."""
        case = self._trials[0].case
        old, new = (Side(case=case, tree=str(tree.folder)) for tree in self._trees)
        return PairedRunner(old, new, self._machine, self._settings, begins)
