"""The staged rule: from log-ratios of pairs to verdicts; above 0 the candidate is slower.

*Screen*: six pairs; where no metric has a one-sided exact Wilcoxon p of at most 0.25, nothing was
found. *Measure*: twenty pairs; a case is suspected at p <= 0.005, multiplied by the number of
metrics (Bonferroni) and adjusted over the cases (Benjamini-Hochberg), where the Hodges-Lehmann
estimate reaches the minimum effect. *Confirm*: twelve fresh pairs, in which the metric that was
suspected has to speak again, at p <= 0.05.

Two processes of equal code can differ steadily, by where memory happens to lie, and what one
interpreter forks inherits that. So each side's interpreter is started anew after every two pairs,
and the minimum effect is at least twice the standard error between such starts.

`StagedRule` is the only state machine: the gate runs it with pairs that are measured when it asks
for them, and `simulate` with pairs that are drawn from measured ones, thousands of gates at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, wilcoxon

from stepbench.records.pair import INTERLEAVED, WHOLE, Figure, Method
from stepbench.records.verdict import Stage
from stepbench.stats.noise import enough_quiet, most_measured, one_more

SCREEN_P, SUSPECT_P, CONFIRM_P = 0.25, 0.005, 0.05
# Undisturbed pairs of a stage; those of the screen are among the twenty.
WANTED: Mapping[Stage, int] = {"screen": 6, "measure": 20, "confirm": 12}
# Pairs from one start of both sides' interpreters: each side begins one of them.
PAIRS_A_START = 2
# The least slowdown that is called one. Where operators, FLOPs and bytes are equal, time alone has
# to show more: what moves memory about moves a step by about a hundredth.
MINIMUM_EFFECT: Mapping[Method, float] = {INTERLEAVED: 0.01, WHOLE: 0.03}
UNEXPLAINED_EFFECT: Mapping[Method, float] = {INTERLEAVED: 0.02, WHOLE: 0.03}
STANDARD_ERRORS = 2.0
# Of so many simulated gates so large a part has to see an effect that "would have been seen".
SIMULATED, SEEN = 400, 0.9

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
Direction = Literal["slower", "faster"]
DIRECTIONS: tuple[Direction, Direction] = ("slower", "faster")
# Log-ratios by metric, shape (gates, cases, pairs), of the cases that are wanted in each gate; NaN
# where a pair is not judged by a metric.
Measure = Callable[[Stage, Mask], Mapping[Figure, Numbers]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What one metric's log-ratios say.

    The one-sided p values, the Hodges-Lehmann estimate, and the standard error of a mean over
    starts; NaN where too few pairs were judged.
    """

    p_slower: Numbers
    p_faster: Numbers
    estimate: Numbers
    error: Numbers

    def p(self, direction: Direction) -> Numbers:
        return self.p_slower if direction == "slower" else self.p_faster

    def effect(self, direction: Direction) -> Numbers:
        """The estimate in that direction: positive where it points there."""
        return self.estimate if direction == "slower" else -self.estimate


Weights = Mapping[Figure, Weight]


def weigh(log_ratios: ArrayLike, wanted: int = 1) -> Weight:
    """Weigh log-ratios, shape (…, pairs), by the exact Wilcoxon signed-rank test.

    NaN stands for a pair that is not judged; with too few others of the `wanted` ones all is NaN.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    enough = enough_quiet(np.isfinite(values).sum(axis=-1), wanted)
    values = np.where(enough[..., None], values, 0.0)
    p_slower, p_faster = (
        wilcoxon(values, axis=-1, alternative=side, method="exact", nan_policy="omit").pvalue
        for side in ("greater", "less")
    )
    told = (p_slower, p_faster, hodges_lehmann(values), error_between_starts(values))
    return Weight(
        **{
            name: np.where(enough, one, np.nan)
            for name, one in zip(Weight.__slots__, told, strict=True)
        }
    )


def hodges_lehmann(values: ArrayLike) -> Numbers:
    """The median of the means of all pairs of values, each with itself too; over the last axis."""
    array = np.asarray(values, dtype=np.float64)
    left, right = np.triu_indices(array.shape[-1])
    means = (array[..., left] + array[..., right]) / 2
    return np.asarray(np.median(means, axis=-1) if np.isfinite(means).all() else _nanmedian(means))


def _nanmedian(means: Numbers) -> Numbers:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmedian(means, axis=-1))


def error_between_starts(values: Numbers) -> Numbers:
    """The standard error of the mean over starts of both interpreters; 0 where there is one."""
    odd = values.shape[-1] % PAIRS_A_START
    filled = np.concatenate([values, np.full((*values.shape[:-1], odd), np.nan)], axis=-1)
    starts = filled.reshape(*values.shape[:-1], -1, PAIRS_A_START)
    seen = np.isfinite(starts)
    many = seen.sum(axis=-1)
    means = np.where(seen, starts, 0.0).sum(axis=-1) / np.maximum(many, 1)
    judged = many > 0
    count = judged.sum(axis=-1)
    centre = np.where(judged, means, 0.0).sum(axis=-1) / np.maximum(count, 1)
    squares = np.where(judged, means - centre[..., None], 0.0) ** 2
    variance = squares.sum(axis=-1) / np.maximum(count - 1, 1)
    return np.asarray(np.sqrt(variance / np.maximum(count, 1)))


def goes_on(weights: Weights) -> Any:
    """Whether the screen's pairs leave room for an effect in either direction."""
    return np.logical_or.reduce(
        [weight.p(direction) <= SCREEN_P for weight in weights.values() for direction in DIRECTIONS]
    )


def judged(weights: Weights) -> Any:
    """Whether any metric had enough pairs."""
    return np.logical_or.reduce([np.isfinite(weight.estimate) for weight in weights.values()])


def strongest(weights: Weights, direction: Direction, minimum: ArrayLike) -> tuple[Numbers, Any]:
    """The smallest p of a metric that shows the minimum effect, times the metrics; which it was.

    1.0 where none shows it. `minimum` is a log-ratio above 0.
    """
    each = list(weights.values())
    p = np.stack([np.where(_shows(one, direction, minimum), one.p(direction), 1.0) for one in each])
    metrics = np.isfinite([one.estimate for one in each]).sum(axis=0)
    return np.minimum(1.0, metrics * p.min(axis=0)), p.argmin(axis=0)


def _shows(weight: Weight, direction: Direction, minimum: ArrayLike) -> Any:
    least = np.maximum(np.asarray(minimum), STANDARD_ERRORS * weight.error)
    return weight.effect(direction) >= least  # False where NaN


def discoveries(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of the cases' p values hold at a false discovery rate of `level`."""
    if not p_values:
        return []
    return [bool(one) for one in false_discovery_control(p_values) <= level]


class StagedRule:
    """Gates of some cases each, on their way through the stages.

    Args:
        gates: how many; the real gate is one.
        minimum: the minimum effect of each case, a log-ratio above 0.

    Attributes, arrays of shape (gates, cases):
        verdicts: a `Verdict` each; "not enough data" until pairs allow one.
        p: by direction, what suspects, adjusted for metrics and cases; 1.0 where nothing does.
        figure: by direction, the index of the metric with that p among those weighed.
        weights: by stage and metric.
    """

    def __init__(self, gates: int, minimum: Sequence[float]) -> None:
        self.minimum = np.asarray(minimum, dtype=np.float64)
        shape = (gates, len(minimum))
        self.verdicts = np.full(shape, "not enough data", dtype=object)
        self.p = {direction: np.ones(shape) for direction in DIRECTIONS}
        self.figure = {direction: np.zeros(shape, dtype=int) for direction in DIRECTIONS}
        self.weights: dict[Stage, dict[Figure, Weight]] = {}

    def run(self, measure: Measure) -> None:
        """Ask for pairs, stage by stage, and set the verdicts; what is known stands if it stops."""
        everything = np.full(self.verdicts.shape, True)
        screened = self._weighed(measure, "screen", everything)
        going_on = goes_on(screened)
        self.verdicts[judged(screened) & ~going_on] = "none"
        if not going_on.any():
            return
        whole = self._weighed(measure, "measure", going_on)
        self.verdicts[going_on & judged(whole)] = "none"
        suspected = {one: self._suspected(whole, one, going_on) for one in DIRECTIONS}
        self.verdicts[suspected["slower"]] = "suspect"
        if any(mask.any() for mask in suspected.values()):
            self._confirm(measure, suspected)

    def strongest_figure(self, direction: Direction, case: int) -> Figure | None:
        """The metric of the first gate's case with the smallest p after twenty pairs."""
        measured = list(self.weights.get("measure", ()))
        return measured[self.figure[direction][0, case]] if measured else None

    def _weighed(self, measure: Measure, stage: Stage, wanted: Mask) -> dict[Figure, Weight]:
        told = measure(stage, wanted)
        self.weights[stage] = {
            figure: _spread_out(weigh(values[wanted], WANTED[stage]), wanted)
            for figure, values in told.items()
        }
        return self.weights[stage]

    def _suspected(self, weights: Weights, direction: Direction, going_on: Mask) -> Mask:
        p, self.figure[direction] = strongest(weights, direction, self.minimum)
        adjusted = false_discovery_control(np.where(going_on, p, 1.0), axis=-1)
        self.p[direction] = np.asarray(adjusted)
        return np.asarray(self.p[direction] <= SUSPECT_P)

    def _confirm(self, measure: Measure, suspected: Mapping[Direction, Mask]) -> None:
        fresh = self._weighed(measure, "confirm", suspected["slower"] | suspected["faster"])
        again = {one: self._again(fresh, one) for one in DIRECTIONS}
        which = np.stack([suspected[one] for one in DIRECTIONS])
        p_values = np.stack([again[one] for one in DIRECTIONS])
        confirmed = np.zeros_like(which)
        for gate in np.flatnonzero(which.any(axis=(0, 2))):
            asked = which[:, gate]
            confirmed[:, gate][asked] = discoveries(p_values[:, gate][asked].tolist(), CONFIRM_P)
        self.verdicts[confirmed[0]] = "regression"
        self.verdicts[confirmed[1]] = "improvement"

    def _again(self, fresh: Weights, direction: Direction) -> Numbers:
        """What the fresh pairs say of the metric that was suspected; 1.0 where it has too few."""
        p = np.stack([weight.p(direction) for weight in fresh.values()])
        chosen = np.take_along_axis(p, self.figure[direction][None], axis=0)[0]
        return np.where(np.isfinite(chosen), chosen, 1.0)


def _spread_out(weight: Weight, wanted: Mask) -> Weight:
    """The weights of the wanted cases in their places among all; NaN elsewhere."""

    def placed(values: Numbers) -> Numbers:
        full = np.full(wanted.shape, np.nan)
        full[wanted] = values
        return full

    return Weight(**{name: placed(getattr(weight, name)) for name in Weight.__slots__})


def simulate(
    rows: Mapping[Figure, ArrayLike], *, minimum: float, gates: int, seed: int = 0
) -> dict[str, int]:
    """Run the rule on pairs drawn again and again from measured ones.

    Args:
        rows: log-ratios of the measured pairs by metric, in the order measured; NaN where a pair is
            not judged by it. A start's pairs stay together, and a pair's metrics.
        minimum: log-ratio that an effect has to reach at least.
        gates: how many simulated gates of one case each.

    Returns:
        How many ended as each verdict that any of them came to.
    """
    values = np.stack([np.asarray(one, dtype=np.float64) for one in rows.values()])
    drawn = _drawn(values.shape[1], gates, np.random.default_rng(seed))
    quiet: Mask = np.isfinite(values).all(axis=0)[drawn]  # type: ignore[index]
    first = most_measured(WANTED["measure"])
    parts = {"screen": slice(first), "measure": slice(first), "confirm": slice(first, None)}

    def measure(stage: Stage, wanted: Mask) -> Mapping[Figure, Numbers]:
        part = parts[stage]
        measured = _measured(quiet[:, part], WANTED[stage])
        used = measured.any(axis=0)  # columns that no gate measured would slow the test down
        kept = np.where(measured, values[:, drawn[:, part]], np.nan)[..., used]
        return {figure: row[:, None] for figure, row in zip(rows, kept, strict=True)}

    rule = StagedRule(gates, [minimum])
    rule.run(measure)
    verdicts, counts = np.unique(rule.verdicts.astype(str), return_counts=True)
    return dict(zip(verdicts.tolist(), counts.tolist(), strict=True))


def _drawn(pairs: int, gates: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of pairs for each gate: whole starts, drawn with replacement."""
    most = most_measured(WANTED["measure"]) + most_measured(WANTED["confirm"])
    starts = rng.integers(pairs // PAIRS_A_START, size=(gates, -(-most // PAIRS_A_START)))
    within = np.arange(PAIRS_A_START)
    return (PAIRS_A_START * starts[..., None] + within).reshape(gates, -1)[:, :most]


def _measured(quiet: Mask, wanted: int) -> Mask:
    """Which of the pairs on offer, shape (gates, pairs), a gate would have measured."""
    before = np.arange(quiet.shape[1])
    return np.asarray(one_more(np.cumsum(quiet, axis=1) - quiet, before, wanted))


def smallest_seen(rows: Mapping[Figure, ArrayLike], minimum: float) -> float:
    """The smallest slowdown that nine gates in ten would have called a regression; a log-ratio.

    The rule is run on the measured pairs, centred and shifted by the effect. Their spread stands
    for the machine's, a little widened for having been estimated from so few.
    """
    centred = {}
    for figure, row in rows.items():
        values = np.asarray(row, dtype=np.float64)
        values = values[: len(values) // PAIRS_A_START * PAIRS_A_START]
        wider = np.sqrt(len(values) / (len(values) - 1))
        centred[figure] = wider * (values - hodges_lehmann(values))

    def seen(effect: float) -> bool:
        shifted = {figure: values + effect for figure, values in centred.items()}
        found = simulate(shifted, minimum=minimum, gates=SIMULATED).get("regression", 0)
        return found >= SEEN * SIMULATED

    low, high = minimum, 2 * minimum
    while not seen(high):
        low, high = high, 2 * high
        if high > 8:  # a factor of 3000: these pairs show nothing at all
            return high
    while high - low > 0.05 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high
