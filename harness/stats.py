"""Statistics derived from records. The process is the replicate, not the step."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.core import Record, Round
from harness.observed import Measurement

MINIMUM_ROUNDS_FOR_INTERVAL = 6
# Of a step: waiting for data that a median would hide matters beyond it.
HIDDEN_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A median over rounds with its 95% interval; `low` and `high` are None below 6 rounds."""

    median: float
    low: float | None
    high: float | None
    rounds: int


def step_s(measurement: Measurement, *beside: Measurement) -> float:
    """The timed step of one process in seconds: the median, or the mean where data come in bursts.

    Then one step in so many waits for all of them, and a median would hide the whole cost of
    loading. What it is held `beside` decides with it: a ratio is of one statistic.
    """
    if any(map(waits_in_bursts, (measurement, *beside))):
        return statistics.fmean(measurement.step_s)
    return statistics.median(measurement.step_s)


def waits_in_bursts(measurement: Measurement) -> bool:
    """Whether workers load, or a few steps wait for their data much longer than most."""
    if measurement.counters.loader_processes or not measurement.data_wait_s:
        return bool(measurement.counters.loader_processes)
    waits_s = measurement.data_wait_s
    hidden_s = statistics.fmean(waits_s) - statistics.median(waits_s)
    return hidden_s > HIDDEN_SHARE * statistics.fmean(measurement.step_s)


def step_ratio(baseline: Measurement, case: Measurement) -> float:
    """The baseline's step over the case's: above 1 the case is faster."""
    return step_s(baseline, case) / step_s(case, baseline)


def estimate(values: Sequence[float], *, widened: bool = False) -> Estimate:
    """The median of one value a round, with a distribution-free interval from 6 values on.

    The interval is that of the sign test (scipy's `quantile_test`): at 6 values it is their range
    (97% sure), below 6 no such interval reaches 95%. `widened` takes the whole range: the interval
    where a round was disturbed.
    """
    low = high = None
    if len(values) >= MINIMUM_ROUNDS_FOR_INTERVAL:
        if widened:
            low, high = min(values), max(values)
        else:
            from scipy.stats import quantile_test  # 0.5 s to import, needed here only

            interval = quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
            low, high = float(interval.low), float(interval.high)
    return Estimate(median=statistics.median(values), low=low, high=high, rounds=len(values))


def unpaired_ratio(
    old: Sequence[float], new: Sequence[float], *, widened: bool = False
) -> Estimate:
    """New over old of processes that were not measured in turn: the median of all their ratios.

    The interval is the one that belongs to that (Hodges-Lehmann) estimate, by the exact
    Mann-Whitney test, from 6 values a side on. `widened` takes the whole range. Values must be
    positive.
    """
    ratios = sorted(after / before for after in new for before in old)
    fewest = min(len(old), len(new))
    low = high = None
    if fewest >= MINIMUM_ROUNDS_FOR_INTERVAL:
        outside = 0 if widened else _outside(len(old), len(new))
        low, high = ratios[outside], ratios[-1 - outside]
    return Estimate(median=statistics.median(ratios), low=low, high=high, rounds=fewest)


def _outside(left: int, right: int) -> int:
    """Ratios to leave out at each end: the largest U that Mann-Whitney calls rarer than 2.5%."""
    largest = left * right
    arrangements = [1] + [0] * largest  # by U: the coefficients of a Gaussian binomial
    for size in range(1, left + 1):
        for u in range(largest, right + size - 1, -1):
            arrangements[u] -= arrangements[u - right - size]
        for u in range(size, largest + 1):
            arrangements[u] += arrangements[u - size]
    tails = itertools.accumulate(arrangements)
    return sum(tail <= 0.025 * math.comb(left + right, left) for tail in tails) - 1


def _per_round(record: Record, ratio: Callable[[Measurement, Measurement], float]) -> Estimate:
    """`ratio(baseline, case)` of every round; ValueError where the record has no rounds."""
    if not record.rounds:
        raise ValueError(f"{record.case} has no rounds to estimate from")
    values = [ratio(one.baseline, one.case) for one in judged(record)]
    return estimate(values, widened=bool(disturbances(record)))


def speedup(record: Record) -> Estimate:
    """Baseline step time over the case's, paired by round; above 1 the case is faster.

    Of a case whose batch has grown, by the same factor: the ratio of throughputs.
    """
    factor = record.case.batch_factor
    return _per_round(record, lambda baseline, case: factor * step_ratio(baseline, case))


def memory_ratio(record: Record) -> Estimate:
    """Steady peak of the case over the baseline's; below 1 the case needs less."""
    return _per_round(
        record,
        lambda baseline, case: (
            case.memory.steady_step.allocated_bytes / baseline.memory.steady_step.allocated_bytes
        ),
    )


def useful_flops(record: Record) -> float:
    """Operations of one step that its result needs, on all ranks.

    The baseline's, of as many batches: what is computed again does not count. Fewer where the case
    itself ran fewer, as with frozen weights.
    """
    return min(
        min(
            one.baseline.counters.flops * record.case.batch_factor,
            (one.case.counters.flops - one.case.counters.recomputed_flops) * record.case.ranks,
        )
        for one in judged(record)
    )


def relative_difference(reference: Sequence[float], values: Sequence[float]) -> float:
    """The largest |value - reference| / |reference| of two equally long series; NaN is inf."""
    pairs = zip(reference, values, strict=True)
    largest = 0.0
    for expected, got in pairs:
        difference = abs(got - expected) / max(abs(expected), 1e-30)
        largest = max(largest, math.inf if math.isnan(difference) else difference)
    return largest


def exponent(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """`b` of the least-squares fit log(amount) = a + b log(size); all values positive."""
    fitted = statistics.linear_regression(list(map(math.log, sizes)), list(map(math.log, amounts)))
    return fitted.slope


def loss_difference(record: Record) -> float:
    """The largest relative difference of loss or gradient norm from the baseline in any round.

    Of all steps that were observed, those that trained on among them: how far the two drifted.
    """
    return max(drift(one.baseline, one.case) for one in record.rounds)


def drift(baseline: Measurement, case: Measurement) -> float:
    """The same for one round; 0.0 means bit-equal."""
    return max(
        relative_difference(baseline.losses, case.losses),
        relative_difference(baseline.grad_norms, case.grad_norms),
    )


def parity_difference(baseline: Measurement, case: Measurement) -> float:
    """The largest relative difference of loss, gradient norm or update at the same parameters.

    Where nobody put the parameters back, all steps are compared as they trained.
    """
    same = case.same_parameter_steps or len(case.losses)
    return max(
        relative_difference(baseline.losses[:same], case.losses[:same]),
        relative_difference(baseline.grad_norms[:same], case.grad_norms[:same]),
        relative_difference(baseline.descents, case.descents),
    )


def judged(record: Record) -> tuple[Round, ...]:
    """The rounds that figures come from: the undisturbed ones, where they are two thirds or more.

    Else all: a few quiet rounds of many are no better a sample. Which side of a round was slower is
    never looked at.
    """
    quiet = tuple(one for one in record.rounds if not disturbed(one))
    return quiet if 3 * len(quiet) >= 2 * len(record.rounds) else record.rounds


def disturbed(one: Round) -> bool:
    """Whether anything shared the machine while either side of a round was timed."""
    return bool(one.case.disturbances or one.baseline.disturbances)


def disturbances(record: Record, rounds: Sequence[Round] | None = None) -> tuple[str, ...]:
    """What shared the machine in any of the rounds (those judged), each told once."""
    told = (
        disturbance
        for one in (judged(record) if rounds is None else rounds)
        for measurement in (one.case, one.baseline)
        for disturbance in measurement.disturbances
    )
    return tuple(dict.fromkeys(told))
