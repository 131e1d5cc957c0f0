"""`stepbench gate`: is one source tree heavier, busier or slower than another, case by case?

First the figures that no clock touches, then time in pairs under the staged rule. All cases go
through a stage before the next begins, and each stage has new forges: what one interpreter's layout
of memory favours does not confirm itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from scipy.stats import false_discovery_control

from harness.core import MEASURE_VERSION, Case
from harness.judging import pins, rule
from harness.judging.pace import Pace
from harness.judging.pairs import Ring
from harness.judging.rule import Direction
from harness.judging.trees import Tree
from harness.judging.trial import STOPPED, WANTED, Trial
from harness.measuring.settings import Settings
from harness.store import now
from harness.verdicts import Gate, Side, Stage

# A process of the tallies or of a pair of whole processes.
SETTINGS = Settings(rounds=1)
DECIDED = "--fail-fast: counters had decided"
Time = Literal["blocking", "advisory", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a gate measures and what its result means.

    `time`: whether time is measured, and then whether it decides. `fail_fast`: none is measured
    once a case's counters have decided. `minutes`: measuring ends after so many. `strict`: what
    is undecided by then fails.
    """

    time: Time = "blocking"
    fail_fast: bool = False
    minutes: float = math.inf
    strict: bool = False


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

    def run(self) -> None:
        """Measure.

        Raises:
            StepbenchError: a tree's code does not start, or measures by another ruler.
        """
        try:
            self._measure()
        except BaseException as error:
            self._suspected()
            if not isinstance(error, _OutOfTime):
                self._stop(STOPPED)
                raise
            self._stop(f"--minutes {self._terms.minutes:g} were over")

    def _measure(self) -> None:
        with self._ring() as ring:
            for trial in self._trials:
                self._in_time()
                self._tell(f"{trial.case}: counting")
                trial.count(ring, self._tell)
            if self._terms.fail_fast and any(trial.told().fails for trial in self._trials):
                self._stop(DECIDED)
            going_on = [one for one in self._trials if one.going_on and self._terms.time != "off"]
            going_on = [one for one in self._each(going_on, "screen") if one.screen(ring)]
        if going_on:
            with self._ring() as ring:
                for trial in self._each(going_on, "measure"):
                    trial.measure(ring)
        if suspected := self._suspected():
            self._confirm(suspected)

    def _each(self, trials: Sequence[Trial], stage: Stage) -> Iterator[Trial]:
        """Trials one after another, their pairs told."""
        known = WANTED["screen"] if stage == "measure" else 0
        self._pace = Pace(self._tell, len(trials), WANTED[stage] - known)
        for trial in trials:
            self._pace.turn_to(trial.case)
            yield trial

    def _begins(self, done: int, wanted: int) -> None:
        self._in_time()
        self._pace.begins(done, wanted)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise _OutOfTime

    def _stop(self, reason: str) -> None:
        for trial in self._trials:
            if self._terms.time != "off" or not trial.counted:
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
            cases=tuple(
                replace(trial.told(), advisory=self._terms.time == "advisory")
                for trial in self._trials
            ),
            strict=self._terms.strict,
            pins=pins.changed(*(tree.pins for tree in self._trees)),
        )

    def _ring(self) -> Ring:
        old, new = (Side(case=self._trials[0].case, tree=str(tree.folder)) for tree in self._trees)
        return Ring(old, new, self._machine, self._settings)

    def _suspected(self) -> list[tuple[Trial, Direction, float]]:
        """Whoever the pairs speak against, at a controlled rate of false discoveries.

        Each is suspect from here on, whatever interrupts the rest.
        """
        suspected: list[tuple[Trial, Direction, float]] = []
        directions: tuple[Direction, Direction] = ("slower", "faster")
        for direction in directions:
            adjusted = false_discovery_control([one.p[direction] for one in self._trials])
            suspected += [
                (trial, direction, float(p))
                for trial, p in zip(self._trials, adjusted, strict=True)
                if p <= rule.SUSPECT_P
            ]
        for trial, direction, p in suspected:
            trial.conclude(direction, p, confirmed=False)
        return suspected

    def _confirm(self, suspected: Sequence[tuple[Trial, Direction, float]]) -> None:
        """Fresh pairs for whoever is suspected."""
        with self._ring() as ring:
            trials = self._each([trial for trial, _, _ in suspected], "confirm")
            for trial, (_, direction, _) in zip(trials, suspected, strict=True):
                trial.confirm(ring, direction)
        found = rule.discoveries([one.confirm_p for one, _, _ in suspected], rule.CONFIRM_P)
        for (trial, direction, p), confirmed in zip(suspected, found, strict=True):
            trial.conclude(direction, p, confirmed=confirmed)
