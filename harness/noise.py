"""What is done about noise: the order of processes, and which disturbed measurements are replaced.

The same policy holds for the rounds of a case, the pairs of the gate and those of pytest's floors.
Standard library and numpy only.
"""

from __future__ import annotations

from typing import Any

# A disturbed measurement is repeated, up to so many times the measurements that are wanted.
MOST_MEASURED = 1.5
# Where fewer of those that are wanted were undisturbed, they are too few to be a sample.
LEAST_QUIET = 2 / 3


def first_begins(index: int) -> bool:
    """Whether the first side (reference, baseline) begins the measurement of that index: A B B A.

    Over every two measurements each side begins once, and a steady drift cancels over four.
    """
    return index % 4 in (0, 3)


def most_measured(wanted: int) -> int:
    """How many measurements are made at most where `wanted` undisturbed ones are asked for."""
    return int(MOST_MEASURED * wanted)


def one_more(quiet: Any, measured: Any, wanted: int) -> Any:
    """Whether to measure once more, with so many undisturbed ones of so many measured.

    Numbers or numpy's arrays of them.
    """
    return (quiet < wanted) & (measured < most_measured(wanted))


def enough_quiet(quiet: Any, wanted: int) -> Any:
    """Whether so many undisturbed measurements can stand for the `wanted` ones."""
    return quiet >= LEAST_QUIET * wanted
