"""How the processes or rounds of a case become the one figure that stands for it.

Each takes a metric's `read` and a `Result`; None where there is nothing to summarise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from stepbench.metrics.result import Result
from stepbench.records.measurement import Measurement
from stepbench.stats import measures
from stepbench.stats.measures import Estimate

Read = Callable[[Any], float | None]
Summary = Callable[[Read, Result], Any]


def all_known(values: Iterable[float | None]) -> list[float] | None:
    """The values, or None where one of them is not there or there are none."""
    told = list(values)
    known = [value for value in told if value is not None]
    return known if known and len(known) == len(told) else None


def median(read: Read, result: Result) -> float | None:
    """Over processes; None where one of them does not tell."""
    known = all_known(map(read, result.processes))
    return statistics.median(known) if known else None


def first(read: Read, result: Result) -> float | None:
    """The first process', of what is the same in all of them."""
    return read(result.processes[0])


def median_of_known(read: Read, result: Result) -> float | None:
    """Over the processes that tell."""
    known = [value for value in map(read, result.processes) if value is not None]
    return statistics.median(known) if known else None


def highest_of_known(read: Read, result: Result) -> float | None:
    """The highest of the processes that tell."""
    return max((value for value in map(read, result.processes) if value is not None), default=None)


def of_process(choose: Callable[[Result], Measurement | None]) -> Summary:
    """What one chosen process says, so that figures which belong together are of the same one."""

    def summary(read: Read, result: Result) -> float | None:
        chosen = choose(result)
        return None if chosen is None else read(chosen)

    return summary


def paired(read: Read, result: Result) -> Estimate | None:
    """The median over judged rounds with its interval, wider where one met interference."""
    known = all_known(map(read, result.judged))
    if known is None:
        return None
    widened = any(map(measures.disturbed, result.judged))
    return measures.estimate(known, widened=widened)


def largest_of_rounds(read: Read, result: Result) -> float | None:
    """Over all rounds: interference does not excuse it."""
    known = all_known(map(read, result.rounds))
    return max(known) if known else None


def of_equal_batches(summary: Summary) -> Summary:
    """The same, but None where the case's batch has grown beyond its baseline's."""
    return lambda read, result: summary(read, result) if result.case.batch_factor == 1 else None


def of_result(read: Read, result: Result) -> float | None:
    """A metric that reads the whole result."""
    return read(result)
