"""The staged rule: from log-ratios of pairs to a verdict; above 0 is slower. Pure functions.

Six pairs; where no figure has a one-sided exact Wilcoxon p of at most 0.25, nothing is found.
Else twenty: *suspect* at p <= 0.005 where the Hodges-Lehmann estimate reaches the floor. Twelve
fresh pairs at p <= 0.05 make it a regression. An improvement is the mirror image.

Two figures are asked on a CPU, process CPU time and wall time: the first is quiet, the second alone
shows waiting. Either may send a case on from the screen. To suspect, p is multiplied by the number
of figures (Bonferroni); to confirm, the figure that was suspected has to speak again, alone. With
several cases the p values that suspect, and then those that confirm, are adjusted for their false
discovery rate (Benjamini-Hochberg).

Everything takes arrays whose last axis is the pairs, so that thousands of simulated gates go
through the same functions as a real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, wilcoxon

from harness.verdicts import Figure, Method

SCREEN_PAIRS, SCREEN_P = 6, 0.25
PAIRS, SUSPECT_P = 20, 0.005
CONFIRM_PAIRS, CONFIRM_P = 12, 0.05
# The least effect that is called one: below it lies what layouts of memory do to equal code.
FLOORS: Mapping[Method, float] = {"ping-pong": 0.01, "whole processes": 0.03}
# Of so many simulated gates so large a part has to see an effect that "would have been seen".
SIMULATED, SEEN = 400, 0.9

Numbers = NDArray[np.float64]
Direction = Literal["slower", "faster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What one figure's log-ratios say: the one-sided p values and the Hodges-Lehmann estimate."""

    p_slower: Numbers
    p_faster: Numbers
    estimate: Numbers

    def p(self, direction: Direction) -> Numbers:
        return self.p_slower if direction == "slower" else self.p_faster

    def effect(self, direction: Direction) -> Numbers:
        """The estimate in that direction: positive where it points there."""
        return self.estimate if direction == "slower" else -self.estimate


def weigh(log_ratios: ArrayLike) -> Weight:
    """Weigh log-ratios, shape (…, pairs), by the exact Wilcoxon signed-rank test."""
    values = np.asarray(log_ratios, dtype=np.float64)
    p_slower, p_faster = (
        np.asarray(wilcoxon(values, axis=-1, alternative=side, method="exact").pvalue)
        for side in ("greater", "less")
    )
    return Weight(p_slower=p_slower, p_faster=p_faster, estimate=hodges_lehmann(values))


def hodges_lehmann(values: ArrayLike) -> Numbers:
    """The median of the means of all pairs of values, each with itself too; over the last axis."""
    array = np.asarray(values, dtype=np.float64)
    left, right = np.triu_indices(array.shape[-1])
    return np.asarray(np.median((array[..., left] + array[..., right]) / 2, axis=-1))


def goes_on(weights: Mapping[Figure, Weight]) -> Any:
    """Whether six pairs leave room for an effect in either direction."""
    return np.logical_or.reduce(
        [
            weight.p(direction) <= SCREEN_P
            for weight in weights.values()
            for direction in ("slower", "faster")
        ]
    )


def strongest(
    weights: Mapping[Figure, Weight], direction: Direction, floor: float
) -> tuple[Numbers, Any]:
    """The smallest p of a figure whose estimate reaches the floor, times the figures; which it was.

    1.0 where none reaches it. `floor` is a log-ratio above 0.
    """
    p = np.stack(
        [
            np.where(weight.effect(direction) >= floor, weight.p(direction), 1.0)
            for weight in weights.values()
        ]
    )
    return np.minimum(1.0, len(weights) * p.min(axis=0)), p.argmin(axis=0)


def discoveries(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of the cases' p values hold at a false discovery rate of `level`."""
    if not p_values:
        return []
    return [bool(one) for one in false_discovery_control(p_values) <= level]


def simulate(
    rows: Mapping[Figure, ArrayLike], *, floor: float, gates: int, seed: int = 0
) -> dict[str, int]:
    """Run the rule on pairs drawn again and again from measured ones.

    Args:
        rows: log-ratios of the measured pairs by figure; a pair's figures stay together.
        floor: log-ratio that an effect has to reach.
        gates: how many simulated gates of one case each.

    Returns:
        How many ended as regression, suspect, improvement and none.
    """
    values = np.stack([np.asarray(one, dtype=np.float64) for one in rows.values()])
    drawn = np.random.default_rng(seed).integers(
        values.shape[1], size=(gates, PAIRS + CONFIRM_PAIRS)
    )
    first, whole, fresh = (
        {figure: weigh(row[drawn[:, part]]) for figure, row in zip(rows, values, strict=True)}
        for part in (slice(SCREEN_PAIRS), slice(PAIRS), slice(PAIRS, None))
    )
    screened = goes_on(first)
    ended = {"none": np.ones(gates, dtype=bool)}
    for direction, verdict, unconfirmed in (
        ("slower", "regression", "suspect"),
        ("faster", "improvement", "none"),
    ):
        p, figure = strongest(whole, direction, floor)  # type: ignore[arg-type]
        again = np.stack([weight.p(direction) for weight in fresh.values()])  # type: ignore[arg-type]
        suspected = screened & (p <= SUSPECT_P)
        confirmed = suspected & (again[figure, np.arange(gates)] <= CONFIRM_P)
        ended["none"] &= ~suspected if unconfirmed != "none" else ~confirmed
        ended[verdict] = confirmed
        if unconfirmed != "none":
            ended[unconfirmed] = suspected & ~confirmed
    return {verdict: int(which.sum()) for verdict, which in ended.items()}


def smallest_seen(rows: Mapping[Figure, ArrayLike], floor: float) -> float:
    """The smallest slowdown that nine gates in ten would have called a regression; a log-ratio.

    The rule is run on the measured pairs, centred and shifted by the effect. Their spread stands
    for the machine's, a little widened for having been estimated from so few.
    """
    centred = {}
    for figure, row in rows.items():
        values = np.asarray(row, dtype=np.float64)
        wider = np.sqrt(len(values) / (len(values) - 1))
        centred[figure] = wider * (values - hodges_lehmann(values))

    def seen(effect: float) -> bool:
        shifted = {figure: values + effect for figure, values in centred.items()}
        found = simulate(shifted, floor=floor, gates=SIMULATED)["regression"]
        return found >= SEEN * SIMULATED

    low, high = floor, 2 * floor
    while not seen(high):
        low, high = high, 2 * high
        if high > 8:  # a factor of 3000: these pairs show nothing at all
            return high
    while high - low > 0.05 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high
