"""Statistics derived from records. The process is the replicate, not the step."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stepbench.records.measurement import Measurement
from stepbench.records.run import Record, Round
from stepbench.stats.noise import representative
from stepbench.stats.periods import period, slow_steps

MINIMUM_ROUNDS_FOR_INTERVAL = 6
# A mean so far from the median is no typical step.
AMORTISED = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A median over rounds with its 95% interval; `low` and `high` are None below 6 rounds."""

    median: float
    low: float | None
    high: float | None
    rounds: int


def step_s(measurement: Measurement, *beside: Measurement) -> float:
    """Seconds of a step of one process: those of all steps over their number (`counted_steps`)."""
    return _mean(measurement.step_s, counted_steps(measurement, *beside))


def cpu_s(measurement: Measurement, *beside: Measurement) -> float:
    """Processor seconds of a step of one process, all its threads, of the steps of `step_s`."""
    return _mean(measurement.cpu_s, counted_steps(measurement, *beside))


def counted_steps(measurement: Measurement, *beside: Measurement) -> list[int]:
    """The timed steps, by index, that a mean is over: whole periods, where slow steps have one.

    Of what is held `beside` another measurement only the batches that both have timed count. Old
    records name no batches: all of their steps do.
    """
    batches = measurement.batches
    if not batches:
        return list(range(len(measurement.step_s)))
    common = set(batches).intersection(*(one.batches for one in beside)) or set(batches)
    counted = [index for index, batch in enumerate(batches) if batch in common]
    if measurement.period is None:
        return counted
    first, last = batches[counted[0]], batches[counted[-1]]
    whole = (last + 1 - first) // measurement.period * measurement.period
    return [index for index in counted if batches[index] < first + whole] or counted


def typical_step_s(measurement: Measurement) -> float:
    """Seconds of the median step: what most steps take, without what comes only now and then."""
    return statistics.median(measurement.step_s[one] for one in counted_steps(measurement))


def undelayed_step_s(measurement: Measurement) -> float | None:
    """A step less what the process waited for a processor in it; None where that is not known."""
    own_s = _undelayed(measurement)
    return _mean(own_s, counted_steps(measurement)) if own_s else None


def is_amortised(measurement: Measurement) -> bool:
    """Whether mean and median step are more than 5% apart, waiting for a processor left out."""
    seconds, counted = _undelayed(measurement) or measurement.step_s, counted_steps(measurement)
    typical_s = statistics.median(seconds[one] for one in counted)
    return abs(_mean(seconds, counted) - typical_s) > AMORTISED * typical_s


def items_per_s(measurement: Measurement) -> float:
    """Loss terms a second, of the same steps as `step_s`."""
    if not measurement.step_tokens:
        return measurement.tokens / step_s(measurement)
    return _mean(measurement.step_tokens, counted_steps(measurement)) / step_s(measurement)


def _mean(values: Sequence[float], indices: Sequence[int]) -> float:
    return statistics.fmean(values[index] for index in indices)


def _undelayed(measurement: Measurement) -> tuple[float, ...]:
    """Seconds of each step less its run delay; empty where that says less than the whole.

    Run delay is the main thread's: it is sound for one thread in one process on a CPU.
    """
    told = measurement.environment
    alone = not measurement.counters.loader_processes and not measurement.ranks
    if not alone or (told.get("device"), told.get("threads")) != ("cpu", 1):
        return ()
    return tuple(
        step - delay for step, delay in zip(measurement.step_s, measurement.delay_s, strict=False)
    )


def periodicity(rounds: Sequence[Round]) -> tuple[frozenset[int], int | None]:
    """The steps that are slow in two processes of a side, and after how many they are so again."""
    cases = [_numbered(one.case) for one in rounds]
    sides = [cases, [_numbered(one.baseline) for one in rounds]]
    slow = slow_steps(sides[0]) | slow_steps(sides[1])
    numbers = [number for side in sides for process in side for number in process]
    return slow, period(slow, min(numbers), max(numbers)) if slow else None


def with_period(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """The rounds, each process told the period that all of them together show."""
    _, found = periodicity(rounds)
    return tuple(
        replace(
            one,
            case=replace(one.case, period=found),
            baseline=replace(one.baseline, period=found),
        )
        for one in rounds
    )


def _numbered(measurement: Measurement) -> dict[int, float]:
    """Seconds of each timed step by how many updates were applied before it."""
    first = measurement.warmup_steps - measurement.skipped_steps - measurement.batches[0]
    seconds = _undelayed(measurement) or measurement.step_s
    return dict(zip((first + one for one in measurement.batches), seconds, strict=True))


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


def drift(baseline: Measurement, case: Measurement) -> float:
    """The largest relative difference of loss or gradient norm from the baseline; 0.0 is bit-equal.

    Of all steps that were observed, those that trained on among them: how far the two drifted.
    """
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

    Which side of a round was slower is never looked at. Rounds that hold less than a period of
    their slow steps are left out wherever others do hold one.
    """
    whole = tuple(one for one in record.rounds if not is_short(one)) or record.rounds
    return representative(whole, lambda one: not disturbed(one))


def is_short(one: Round) -> bool:
    """Whether a side's window holds less than the period of its slow steps."""
    return any(
        side.period is not None and side.batches[-1] + 1 - side.batches[0] < side.period
        for side in (one.case, one.baseline)
    )


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
