"""One case before the gate: its tallies, its pairs, and what the rule said of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from stepbench import comparable
from stepbench.errors import StepbenchError
from stepbench.gate.counters import PROCESSES, compared, differences, tally
from stepbench.measuring.pairs import PairedRunner, PairFailed, Role, method_for, order_of
from stepbench.records.case import Case
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.pair import INTERLEAVED, Figure, Method, Order, Pair
from stepbench.records.verdict import (
    CaseVerdict,
    Difference,
    MeasuredPair,
    Stage,
    Tally,
    TimeVerdict,
    Weighed,
)
from stepbench.stats import rule
from stepbench.stats.noise import most_measured, one_more
from stepbench.stats.rule import (
    PAIRS_A_START,
    WANTED,
    Direction,
    Numbers,
    StagedRule,
    Weight,
)

STOPPED = "the gate was stopped before"
# Starts both sides' interpreters, the named one first; a context that ends them.
Start = Callable[[Order], AbstractContextManager[PairedRunner]]


class Trial:
    """What is known of one case so far; `told()` is its verdict at any moment.

    Before a pair begins, `begins` hears how many of its stage's are done and wanted; what it raises
    ends the stage and loses nothing.
    """

    def __init__(
        self,
        case: Case,
        machine: Mapping[str, Any],
        begins: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> None:
        self.case, self._machine, self._begins = case, machine, begins
        self._outcomes: dict[Role, Outcome] = {}
        self._differences: tuple[Difference, ...] = ()
        self._compared: tuple[str, ...] = ()
        self._refused: str | None = None
        self._undecided: str | None = None
        self._method: Method | None = None
        self._pairs: list[tuple[Stage, Pair]] = []
        self._reason: str | None = None

    @property
    def counted(self) -> bool:
        """Whether both sides were tried."""
        return len(self._outcomes) == 2

    @property
    def going_on(self) -> bool:
        """Whether more pairs are of use."""
        return self._method is not None and self._reason is None

    @property
    def minimum_effect(self) -> float:
        """The log-ratio that a slowdown has to reach; less where counts or bytes explain it."""
        explained = any(one.unit != "value" for one in self._differences)
        least = rule.MINIMUM_EFFECT if explained else rule.UNEXPLAINED_EFFECT
        return math.log1p(least[self._method or INTERLEAVED])

    def count(self, runner: PairedRunner, tell: Callable[[str], None] = lambda line: None) -> None:
        """Tally both sides, and say by which method their time can be compared.

        The candidate comes first: where it gives no number that is told at once, and one process
        answers what is left to ask, whether the reference gives one.
        """
        runner.turn_to(self.case, self.case)
        measured: dict[Role, list[Measurement]] = {}
        tallies: dict[Role, Tally] = {}
        processes = PROCESSES
        for role in ("candidate", "reference"):
            try:
                measured[role] = [runner.measurement(role) for _ in range(processes)]
                tallies[role] = tally(measured[role])
                self._outcomes[role] = Outcome(kind="ok")
            except PairFailed as failed:
                self._outcomes[role] = failed.outcome
            except StepbenchError as error:
                self._outcomes[role] = Outcome(kind="invalid", reason=str(error))
            if role not in tallies:
                tell(f"{self.case}: {role}: {self._outcomes[role]}")
                processes = 1
        if len(tallies) < 2:
            return
        self._refused = comparable.difference(
            tallies["reference"].alike, tallies["candidate"].alike
        )
        if self._refused is None:
            self._differences = differences(tallies["reference"], tallies["candidate"])
            self._compared = compared(tallies["reference"], tallies["candidate"])
            sides = tuple(measured[role][0] for role in ("reference", "candidate"))
            self._method = method_for(*sides, ranks=self.case.ranks, machine=self._machine)

    def measure(self, stage: Stage, start: Start) -> None:
        """Measure the pairs that a stage wants, both sides' interpreters started anew every two.

        A side that gives no number ends it, with that as the reason.
        """
        try:
            while self._wants_more(stage):
                with start(order_of(len(self._pairs) // PAIRS_A_START)) as runner:
                    runner.turn_to(self.case, self.case)
                    for _ in range(PAIRS_A_START):
                        if self._wants_more(stage):
                            self._begins(len(self._of(stage)), WANTED[stage])
                            self._pairs.append((stage, self._one_more(runner)))
        except PairFailed as failed:
            self._reason = str(failed)

    def log_ratios(self, stage: Stage) -> dict[Figure, Numbers]:
        """By metric, the stage's pairs in the order measured, as many as it may have at most.

        NaN where a pair is not judged by the metric, or is not there.
        """
        pairs = self._of(stage)
        figures = self._pairs[0][1].figures if self._pairs else ()
        ratios = {figure: np.full(most_measured(WANTED[stage]), np.nan) for figure in figures}
        for figure, values in ratios.items():
            values[: len(pairs)] = [
                np.nan if figure in pair.discarded else pair.log_ratio(figure) for pair in pairs
            ]
        return ratios

    def _one_more(self, runner: PairedRunner) -> Pair:
        assert self._method is not None
        return runner.pair(self._method, order_of(len(self._pairs)))

    def _wants_more(self, stage: Stage) -> bool:
        pairs = self._of(stage)
        quiet = sum(not pair.disturbances for pair in pairs)
        return bool(one_more(quiet, len(pairs), WANTED[stage]))

    def _of(self, stage: Stage) -> list[Pair]:
        """A stage's pairs: the screen's are among the twenty, the confirming ones are not."""
        stages = ("screen", "measure") if stage == "measure" else (stage,)
        return [pair for at, pair in self._pairs if at in stages]

    def stop(self, reason: str) -> None:
        """Measure no more: what the pairs so far do not decide stays undecided, for this reason."""
        if not self.counted:
            self._undecided = reason
        elif self.going_on:
            self._reason = reason

    def told(self, ruled: StagedRule, index: int) -> CaseVerdict:
        """The case's verdict with all that it rests on; it is the rule's case of that index."""
        unknown = Outcome(kind="failed", reason=STOPPED)
        return CaseVerdict(
            case=self.case,
            reference=self._outcomes.get("reference", unknown),
            candidate=self._outcomes.get("candidate", unknown),
            differences=self._differences,
            refused=self._refused,
            time=self._time(ruled, index) if self._pairs or self._reason else None,
            compared=self._compared,
            undecided=self._undecided,
        )

    def _time(self, ruled: StagedRule, index: int) -> TimeVerdict:
        assert self._method is not None
        verdict = ruled.verdicts[0, index]
        direction: Direction = "faster" if verdict == "improvement" else "slower"
        weighed = self._weighed(ruled, index)
        before = [one for one in weighed if one.stage != "confirm"]
        last = [one for one in before if one.stage == before[-1].stage]
        figure = ruled.strongest_figure(direction, index) or (last[0].figure if last else None)
        suspected = verdict in ("regression", "suspect", "improvement")
        return TimeVerdict(
            verdict=verdict,
            method=self._method,
            figure=figure,
            estimate=next((one.estimate for one in last if one.figure == figure), None),
            p=float(ruled.p[direction][0, index]) if suspected else None,
            minimum_effect=self.minimum_effect,
            smallest_seen=self._smallest_seen(last[0].stage) if verdict == "none" else None,
            weighed=weighed,
            pairs=tuple(MeasuredPair(stage=stage, pair=pair) for stage, pair in self._pairs),
            reason=self._reason or self._too_few(ruled, index),
        )

    def _weighed(self, ruled: StagedRule, index: int) -> tuple[Weighed, ...]:
        """The rule's weights of this case; of a metric with too few pairs there are none."""
        return tuple(
            Weighed(
                stage=stage,
                figure=figure,
                pairs=int(np.isfinite(self.log_ratios(stage)[figure]).sum()),
                **{name: float(getattr(weight, name)[0, index]) for name in Weight.__slots__},
            )
            for stage, weights in ruled.weights.items()
            for figure, weight in weights.items()
            if np.isfinite(weight.estimate[0, index])
        )

    def _too_few(self, ruled: StagedRule, index: int) -> str | None:
        """Why the last stage's pairs were not judged, where they were not."""
        stage: Stage = self._pairs[-1][0]
        weights = ruled.weights.get(stage)
        if weights and any(np.isfinite(one.estimate[0, index]) for one in weights.values()):
            return None
        if weights is None:
            return STOPPED
        pairs = self._of(stage)
        disturbed = sum(bool(pair.disturbances) for pair in pairs)
        return f"{disturbed} of {len(pairs)} pairs were disturbed; run it on a quieter machine"

    def _smallest_seen(self, stage: Stage) -> float:
        rows = np.stack(list((ratios := self.log_ratios(stage)).values()))
        whole = np.isfinite(rows).all(axis=0)
        seen = dict(zip(ratios, rows[:, whole], strict=True))
        return rule.smallest_seen(seen, self.minimum_effect)
