"""`stepbench gate`: is one source tree heavier, busier or slower than another, case by case?

First the figures that no clock touches, then time in pairs under the staged rule. All cases go
through a stage before the next begins, and each stage has new forges: what one interpreter's layout
of memory favours does not confirm itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from scipy.stats import false_discovery_control

from harness.core import MEASURE_VERSION, Case
from harness.judging import rule
from harness.judging.pairs import Ring
from harness.judging.rule import Direction
from harness.judging.trees import Tree
from harness.judging.trial import Trial
from harness.measuring.settings import Settings
from harness.store import now
from harness.verdicts import Gate, Side

# A process of the tallies or of a pair of whole processes.
SETTINGS = Settings(rounds=1)


class Session:
    """One run of the gate; `told()` says what is known at any moment, however `run` ended."""

    def __init__(
        self,
        reference: Tree,
        candidate: Tree,
        cases: Sequence[Case],
        machine: Mapping[str, Any],
        *,
        timed: bool = True,
        settings: Settings = SETTINGS,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._trees, self._machine, self._settings = (reference, candidate), machine, settings
        self._timed, self._tell, self._began = timed, tell, now()
        self._trials = [Trial(case, machine) for case in cases]

    def run(self) -> None:
        """Measure.

        Raises:
            StepbenchError: a tree's code does not start, or measures by another ruler.
        """
        going_on: list[Trial] = []
        with self._ring() as ring:
            for trial in self._trials:
                self._tell(f"{trial.case}: counting")
                trial.count(ring)
                if self._timed and trial.going_on:
                    self._tell(f"{trial.case}: {rule.SCREEN_PAIRS} pairs")
                    if trial.screen(ring):
                        going_on.append(trial)
        if going_on:
            with self._ring() as ring:
                for trial in going_on:
                    self._tell(f"{trial.case}: {rule.PAIRS} pairs")
                    trial.measure(ring)
        self._confirm()

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
            timed=self._timed,
            cases=tuple(trial.told() for trial in self._trials),
        )

    def _ring(self) -> Ring:
        old, new = (Side(case=self._trials[0].case, tree=str(tree.folder)) for tree in self._trees)
        return Ring(old, new, self._machine, self._settings)

    def _confirm(self) -> None:
        """Fresh pairs for whoever is suspected, at a controlled rate of false discoveries."""
        suspected: list[tuple[Trial, Direction, float]] = []
        directions: tuple[Direction, Direction] = ("slower", "faster")
        for direction in directions:
            adjusted = false_discovery_control([one.p[direction] for one in self._trials])
            suspected += [
                (trial, direction, float(p))
                for trial, p in zip(self._trials, adjusted, strict=True)
                if p <= rule.SUSPECT_P
            ]
        if not suspected:
            return
        for trial, direction, p in suspected:  # what stands if the rest is interrupted
            trial.conclude(direction, p, confirmed=False)
        with self._ring() as ring:
            for trial, direction, _ in suspected:
                self._tell(f"{trial.case}: {direction}? {rule.CONFIRM_PAIRS} fresh pairs")
                trial.confirm(ring, direction)
        found = rule.discoveries([one.confirm_p for one, _, _ in suspected], rule.CONFIRM_P)
        for (trial, direction, p), confirmed in zip(suspected, found, strict=True):
            trial.conclude(direction, p, confirmed=confirmed)
