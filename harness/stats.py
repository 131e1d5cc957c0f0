"""Statistics derived from records. The process is the replicate, not the step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.core import Measurement, Record

MINIMUM_ROUNDS_FOR_INTERVAL = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A median over rounds with its 95% interval; `low` and `high` are None below 6 rounds."""

    median: float
    low: float | None
    high: float | None
    rounds: int


def step_s(measurement: Measurement) -> float:
    """The median timed step of one process, in seconds."""
    return statistics.median(measurement.step_s)


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


def _per_round(record: Record, ratio: Callable[[Measurement, Measurement], float]) -> Estimate:
    """`ratio(baseline, case)` of every round; ValueError where the record has no rounds."""
    if not record.rounds:
        raise ValueError(f"{record.case} has no rounds to estimate from")
    values = [ratio(one.baseline, one.case) for one in record.rounds]
    return estimate(values, widened=bool(disturbances(record)))


def speedup(record: Record) -> Estimate:
    """Baseline step time over the case's, paired by round; above 1 the case is faster."""
    return _per_round(record, lambda baseline, case: step_s(baseline) / step_s(case))


def memory_ratio(record: Record) -> Estimate:
    """Steady peak of the case over the baseline's; below 1 the case needs less."""
    return _per_round(
        record,
        lambda baseline, case: (
            case.memory.steady_step.allocated_bytes / baseline.memory.steady_step.allocated_bytes
        ),
    )


def relative_difference(reference: Sequence[float], values: Sequence[float]) -> float:
    """The largest |value - reference| / |reference| of two equally long series; NaN is inf."""
    pairs = zip(reference, values, strict=True)
    largest = 0.0
    for expected, got in pairs:
        difference = abs(got - expected) / max(abs(expected), 1e-30)
        largest = max(largest, math.inf if math.isnan(difference) else difference)
    return largest


def loss_difference(record: Record) -> float:
    """The largest relative difference of loss or gradient norm from the baseline in any round."""
    return max(parity_difference(one.baseline, one.case) for one in record.rounds)


def parity_difference(baseline: Measurement, case: Measurement) -> float:
    """The same for one round; 0.0 means bit-equal."""
    return max(
        relative_difference(baseline.losses, case.losses),
        relative_difference(baseline.grad_norms, case.grad_norms),
    )


def disturbances(record: Record) -> tuple[str, ...]:
    """What shared the machine in any round, each told once."""
    told = (
        disturbance
        for one in record.rounds
        for measurement in (one.case, one.baseline)
        for disturbance in measurement.disturbances
    )
    return tuple(dict.fromkeys(told))
