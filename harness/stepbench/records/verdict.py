"""What the gate says of two sides: counters, time, and each case's verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stepbench.records.case import Case
from stepbench.records.jsonable import Jsonable
from stepbench.records.outcome import Outcome
from stepbench.records.pair import Figure, Method, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally(Jsonable):
    """What no clock touches, of one case on one side.

    Attributes:
        counts: figures that repeat exactly and of which less is better: `flops`, `operators`
            (dispatched), `recomputed_products`.
        operators: dispatched operators by name: where a difference comes from.
        flops_by_type: FLOPs of matrix products by the type of their inputs.
        least_bytes, most_bytes: by figure, over the side's fresh processes: `build_peak`,
            `first_step_peak`, `steady_peak`, `saved_for_backward`, `growth_per_step`, and what the
            steady peak is made of: `parameters`, `gradients`, `optimizer_state`,
            `activations_and_temporaries` (`LABELS` says what of that was observed).
        least_values, most_values: of each of the first applied steps, over the side's fresh
            processes: `loss` and `gradient_norm` at the initial parameters, how far their `update`
            led along the gradient, and the `loss_after_updates` of the others.
        tolerance: relative difference of these that the case's own rounding may make.
        alike: what has to be equal for two tallies to be compared.
    """

    counts: Mapping[str, int]
    operators: Mapping[str, int]
    flops_by_type: Mapping[str, int]
    least_bytes: Mapping[str, int]
    most_bytes: Mapping[str, int]
    alike: Mapping[str, str | int | None]
    least_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    most_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tolerance: float = 0.0


# Figures that no clock touches and that a gate judges: what may be named as intended.
JUDGED = (
    *("operators", "flops", "recomputed_products"),
    *("build_peak", "first_step_peak", "steady_peak", "saved_for_backward", "growth_per_step"),
    *("loss", "gradient_norm", "update", "loss_after_updates"),
)
# For people, where a key on disk says more than was observed.
LABELS: Mapping[str, str] = {
    "activations_and_temporaries": "beyond parameters and optimizer state",
    "saved_for_backward": "alive after forward",
}


def label(figure: str) -> str:
    """A figure's name in what people read."""
    return LABELS.get(figure, figure.replace("_", " "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Jsonable):
    """One figure that is not what it was. `detail`: where it comes from, one line each.

    `changed` is neither better nor worse, and told without failing; `beyond tolerance` is a changed
    loss or gradient norm that rounding does not explain, and fails.
    """

    figure: str
    change: Literal["worse", "better", "changed", "beyond tolerance"]
    unit: Literal["count", "bytes", "value"]
    old: int | float
    new: int | float
    detail: tuple[str, ...] = ()


Verdict = Literal["regression", "suspect", "none", "improvement", "not enough data"]
Stage = Literal["screen", "measure", "confirm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed(Jsonable):
    """One figure over the pairs of one stage.

    `estimate` is the Hodges-Lehmann estimate of the log-ratio, `error` the standard error of a mean
    over starts of both sides' interpreters; the p values are one-sided.
    """

    stage: Stage
    figure: Figure
    pairs: int
    estimate: float
    error: float
    p_slower: float
    p_faster: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPair(Jsonable):
    """A pair in the order of measurement, and the stage that asked for it."""

    stage: Stage
    pair: Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeVerdict(Jsonable):
    """What the pairs say.

    Attributes:
        figure: the one that the verdict rests on.
        estimate: its log-ratio, over the twenty pairs, or the six where the screen stopped.
        p: what suspected, adjusted for figures and cases.
        minimum_effect: log-ratio that the estimate has to reach at least.
        smallest_seen: log-ratio of the smallest slowdown that would have been seen; for "none".
        reason: for "not enough data".
    """

    verdict: Verdict
    method: Method
    figure: Figure | None
    estimate: float | None
    p: float | None
    minimum_effect: float
    smallest_seen: float | None
    weighed: tuple[Weighed, ...]
    pairs: tuple[MeasuredPair, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseVerdict(Jsonable):
    """One case on both sides: how each ended, what differs without a clock, and in time.

    `refused`: why the two cannot be compared, naming the key. `time` is None where no pairs were
    asked for or could be had. `compared`: the figures without a clock that both sides have.
    `undecided`: why the gate stopped before both sides were tried. `advisory`: time is told and
    decides nothing. `intended`: figures of which a difference is told and decides nothing.
    """

    case: Case
    reference: Outcome
    candidate: Outcome
    differences: tuple[Difference, ...] = ()
    refused: str | None = None
    time: TimeVerdict | None = None
    compared: tuple[str, ...] = ()
    undecided: str | None = None
    advisory: bool = False
    intended: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """A `Verdict`, or `refused`, `failed` (on both sides), `unsupported`, `works again`.

        `changed`: its loss or gradient norm is another, beyond what rounding explains. `slower,
        advisory`: a regression of time alone, where time decides nothing.
        """
        if self.undecided:
            return "not enough data"
        if self.refused:
            return "refused"
        if not self.candidate.ok:
            if self.reference.ok:
                return "regression"
            return "unsupported" if self.candidate.kind == "unsupported" else "failed"
        if not self.reference.ok:
            return "works again"
        changes = {one.change for one in self.differences if one.figure not in self.intended}
        told = self.time.verdict if self.time else "none"
        if "worse" in changes or (told == "regression" and not self.advisory):
            return "regression"
        if "beyond tolerance" in changes:
            return "changed"
        if told == "none" and "better" in changes:
            return "improvement"
        if self.advisory and told in ("regression", "not enough data"):
            return "slower, advisory" if told == "regression" else "none"
        return told

    @property
    def fails(self) -> bool:
        """Whether the candidate is to blame."""
        return self.verdict in ("regression", "changed")

    @property
    def open(self) -> bool:
        """Whether too little was measured for a verdict, or to confirm a suspicion."""
        unconfirmed = self.verdict == "suspect" and self.time is not None and self.time.reason
        return self.verdict == "not enough data" or bool(unconfirmed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin(Jsonable):
    """A library that both sides ask for differently, in `file`; None: that side does not ask."""

    name: str
    file: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate(Jsonable):
    """A whole comparison of two sides, named for people (`reference`, `candidate`).

    `strict`: what could not be decided has an exit code of its own. `pins`: what else the two sides
    would have installed; both ran on what is installed here.
    """

    reference: str
    candidate: str
    started_at: str  # ISO 8601, UTC
    machine: Mapping[str, Any]
    torch: str
    measure_version: int
    timed: bool
    cases: tuple[CaseVerdict, ...]
    strict: bool = False
    pins: tuple[Pin, ...] = ()

    @property
    def exit_code(self) -> int:
        """1: something regressed, or learns otherwise; 2: a case was refused or gives no number on
        either side; 3: strict, and something was not decided; or 0.
        """
        if any(one.fails for one in self.cases):
            return 1
        told = {one.verdict for one in self.cases}
        if told & {"refused", "failed"}:
            return 2
        return 3 if self.strict and any(one.open for one in self.cases) else 0
