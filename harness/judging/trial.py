"""One case before the gate: its tallies, then its pairs through the stages of the rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from harness.core import Case, Outcome, StepbenchError
from harness.judging import rule
from harness.judging.pairs import PairFailed, Ring, Role, method_for, order_of
from harness.judging.rule import Direction, Weight
from harness.judging.tallies import PROCESSES, compared, differences, tally, unlike
from harness.observed import Measurement
from harness.verdicts import (
    CaseVerdict,
    Difference,
    Figure,
    MeasuredPair,
    Method,
    Pair,
    Stage,
    Tally,
    TimeVerdict,
    Verdict,
    Weighed,
)

WANTED: Mapping[Stage, int] = {
    "screen": rule.SCREEN_PAIRS,
    "measure": rule.PAIRS,
    "confirm": rule.CONFIRM_PAIRS,
}
# A disturbed pair is measured again, up to so many times the pairs that a stage wants.
MOST_MEASURED = 1.5
# A figure with fewer undisturbed pairs than this share of them is not judged.
LEAST_SHARE = 0.6
STOPPED = "the gate was stopped before"


class Trial:
    """What is known of one case so far; `told()` is its verdict at any moment.

    Attributes:
        p: after the stage `measure`, what speaks for each direction; 1.0 before and where nothing.
        confirm_p: the same of the fresh pairs, for the direction and figure that were suspected.

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
        self.p: dict[Direction, float] = {"slower": 1.0, "faster": 1.0}
        self.confirm_p = 1.0
        self._outcomes: dict[Role, Outcome] = {}
        self._differences: tuple[Difference, ...] = ()
        self._compared: tuple[str, ...] = ()
        self._refused: str | None = None
        self._undecided: str | None = None
        self._method: Method | None = None
        self._pairs: list[tuple[Stage, Pair]] = []
        self._weighed: list[Weighed] = []
        self._strongest: dict[Direction, Figure] = {}
        self._verdict: Verdict = "not enough data"
        self._adjusted_p: float | None = None
        self._reason: str | None = None

    @property
    def counted(self) -> bool:
        """Whether both sides were tried."""
        return len(self._outcomes) == 2

    @property
    def going_on(self) -> bool:
        """Whether more pairs are of use."""
        return self._method is not None and self._reason is None

    def count(self, ring: Ring, tell: Callable[[str], None] = lambda line: None) -> None:
        """Tally both sides, and say by which method their time can be compared.

        The candidate comes first: where it gives no number that is told at once, and one process
        answers what is left to ask, whether the reference gives one.
        """
        ring.turn_to(self.case, self.case)
        measured: dict[Role, list[Measurement]] = {}
        tallies: dict[Role, Tally] = {}
        processes = PROCESSES
        for role in ("candidate", "reference"):
            try:
                measured[role] = [ring.measurement(role) for _ in range(processes)]
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
        self._refused = unlike(tallies["reference"], tallies["candidate"])
        if self._refused is None:
            self._differences = differences(tallies["reference"], tallies["candidate"])
            self._compared = compared(tallies["reference"], tallies["candidate"])
            sides = tuple(measured[role][0] for role in ("reference", "candidate"))
            self._method = method_for(*sides, ranks=self.case.ranks, machine=self._machine)

    def screen(self, ring: Ring) -> bool:
        """The first pairs; whether they leave room for an effect."""
        weights = self._stage(ring, "screen")
        if weights is None:
            return False
        if not rule.goes_on(weights):
            self._verdict = "none"
            return False
        return True

    def measure(self, ring: Ring) -> None:
        """The rest of the pairs, and what they say for each direction."""
        weights = self._stage(ring, "measure")
        if weights is None:
            return
        self._verdict = "none"
        directions: tuple[Direction, Direction] = ("slower", "faster")
        for direction in directions:
            p, index = rule.strongest(weights, direction, self._floor)
            self.p[direction] = float(p)
            self._strongest[direction] = list(weights)[int(index)]

    def confirm(self, ring: Ring, direction: Direction) -> None:
        """Fresh pairs for what was suspected, by the figure that showed it."""
        weights = self._stage(ring, "confirm") or {}
        figure = self._strongest[direction]
        if figure in weights:
            self.confirm_p = float(weights[figure].p(direction))

    def conclude(self, direction: Direction, adjusted_p: float, *, confirmed: bool) -> None:
        """Set the verdict of a case that was suspected, slower or faster."""
        self._adjusted_p = adjusted_p
        if direction == "slower":
            self._verdict = "regression" if confirmed else "suspect"
        elif confirmed:
            self._verdict = "improvement"

    def stop(self, reason: str) -> None:
        """Measure no more: what is not decided by now is not enough data, or suspect."""
        if not self.counted:
            self._undecided = reason
        elif self.going_on and self._verdict in ("not enough data", "suspect"):
            self._reason = reason

    def told(self) -> CaseVerdict:
        """The case's verdict with all that it rests on."""
        unknown = Outcome(kind="failed", reason=STOPPED)
        return CaseVerdict(
            case=self.case,
            reference=self._outcomes.get("reference", unknown),
            candidate=self._outcomes.get("candidate", unknown),
            differences=self._differences,
            refused=self._refused,
            time=self._time() if self._pairs or self._reason else None,
            compared=self._compared,
            undecided=self._undecided,
        )

    @property
    def _floor(self) -> float:
        return math.log1p(rule.FLOORS[self._method or "ping-pong"])

    def _stage(self, ring: Ring, stage: Stage) -> dict[Figure, Weight] | None:
        """Measure a stage's pairs and weigh them; None where there are too few."""
        ring.turn_to(self.case, self.case)
        wanted = WANTED[stage]
        try:
            while not self._enough(stage):
                self._begins(len(self._of(stage)), wanted)
                self._pairs.append((stage, self._one_more(ring)))
        except PairFailed as failed:
            self._reason, self._verdict = str(failed), "not enough data"
            return None
        weights = {}
        for figure in self._pairs[0][1].figures:
            values = self._values(stage, figure)
            if len(values) >= LEAST_SHARE * wanted:
                weights[figure] = rule.weigh(values)
                self._weighed.append(_noted(stage, figure, len(values), weights[figure]))
        if not weights:
            self._reason, self._verdict = self._too_few(stage), "not enough data"
        return weights or None

    def _one_more(self, ring: Ring) -> Pair:
        assert self._method is not None
        return ring.pair(self._method, order_of(len(self._pairs)))

    def _enough(self, stage: Stage) -> bool:
        pairs = self._of(stage)
        clean = sum(not pair.disturbances for pair in pairs)
        return clean >= WANTED[stage] or len(pairs) >= MOST_MEASURED * WANTED[stage]

    def _of(self, stage: Stage) -> list[Pair]:
        """A stage's pairs: the screen's are among the twenty, the confirming ones are not."""
        stages = ("screen", "measure") if stage == "measure" else (stage,)
        return [pair for at, pair in self._pairs if at in stages]

    def _values(self, stage: Stage, figure: Figure) -> list[float]:
        return [
            pair.log_ratio(figure) for pair in self._of(stage) if figure not in dropped_for(pair)
        ]

    def _too_few(self, stage: Stage) -> str:
        pairs = self._of(stage)
        disturbed = sum(bool(pair.disturbances) for pair in pairs)
        return f"{disturbed} of {len(pairs)} pairs were disturbed; run it on a quieter machine"

    def _time(self) -> TimeVerdict:
        assert self._method is not None
        last = [one for one in self._weighed if one.stage != "confirm"]
        last = [one for one in last if one.stage == last[-1].stage]
        direction: Direction = "faster" if self._verdict == "improvement" else "slower"
        figure = self._strongest.get(direction, last[0].figure if last else None)
        return TimeVerdict(
            verdict=self._verdict,
            method=self._method,
            figure=figure,
            estimate=next((one.estimate for one in last if one.figure == figure), None),
            p=self._adjusted_p,
            smallest_seen=self._smallest_seen(last) if self._verdict == "none" else None,
            weighed=tuple(self._weighed),
            pairs=tuple(
                MeasuredPair(stage=stage, pair=pair, dropped_for=dropped_for(pair))
                for stage, pair in self._pairs
            ),
            reason=self._reason or (STOPPED if self._verdict == "not enough data" else None),
        )

    def _smallest_seen(self, weighed: list[Weighed]) -> float:
        figures = [one.figure for one in weighed]
        pairs = [
            pair for pair in self._of(weighed[0].stage) if not {*figures} & {*dropped_for(pair)}
        ]
        rows = {figure: [pair.log_ratio(figure) for pair in pairs] for figure in figures}
        return rule.smallest_seen(rows, self._floor)


def dropped_for(pair: Pair) -> tuple[Figure, ...]:
    """The figures that a disturbed pair is not judged by, whichever side was slower in it.

    Neighbours scatter wall time by a multiple and CPU time by little, so that CPU time stands.
    """
    return ("step_s",) if pair.disturbances else ()


def _noted(stage: Stage, figure: Figure, pairs: int, weight: Weight) -> Weighed:
    return Weighed(
        stage=stage,
        figure=figure,
        pairs=pairs,
        estimate=float(weight.estimate),
        p_slower=float(weight.p_slower),
        p_faster=float(weight.p_faster),
    )
