"""What is noise, and what is done about it: thresholds, order, and which measurements are replaced.

One policy holds for the rounds of a case, the pairs of the gate and those of pytest's thresholds.
Reading results needs it, so torch is not imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

# A quiet 2-core machine stayed below both in every window; a busy neighbour takes a core.
STOLEN_SHARE = 0.05
FOREIGN_CORES = 0.25
# Of its time, the part that a process may wait for a processor that others have.
DELAYED_SHARE = 0.05
# Of the cores that a case leaves free, others may have this share: on a large host they then find
# room beside it, and on 2 cores a case of one process bears no more than the above.
FREE_SHARE = 0.25
# A disturbed measurement is repeated, up to so many times the measurements that are wanted.
MOST_MEASURED = 1.5

Item = TypeVar("Item")


def tolerated_cores(processes: int) -> float:
    """How many processors others may keep busy beside so many busy processes of our own."""
    free = max(0, len(os.sched_getaffinity(0)) - processes)
    return max(FOREIGN_CORES, FREE_SHARE * free)


def first_begins(index: int) -> bool:
    """Whether the first side (reference, baseline) begins the measurement of that index: A B B A.

    Over every two measurements each side begins once, and a steady drift cancels over four.
    """
    return index % 4 in (0, 3)


def most_measured(wanted: int) -> int:
    """How many measurements are made at most where `wanted` undisturbed ones are asked for."""
    return math.ceil(MOST_MEASURED * wanted)


def one_more(quiet: Any, measured: Any, wanted: int, most: int | None = None) -> Any:
    """Whether to measure once more, with so many undisturbed ones of so many measured.

    Numbers or numpy's arrays of them. `most` replaces what `most_measured` allows.
    """
    return (quiet < wanted) & (measured < (most_measured(wanted) if most is None else most))


def enough_quiet(quiet: Any, wanted: int) -> Any:
    """Whether so many undisturbed measurements, two thirds, can stand for the `wanted` ones."""
    return 3 * quiet >= 2 * wanted


def representative(items: Sequence[Item], quiet: Callable[[Item], bool]) -> tuple[Item, ...]:
    """The undisturbed ones where they are enough, else all: few of many are no better a sample."""
    undisturbed = tuple(filter(quiet, items))
    return undisturbed if enough_quiet(len(undisturbed), len(items)) else tuple(items)
