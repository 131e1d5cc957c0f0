"""What a test may say of a combination: its speed, memory and counters beside the baseline's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from stepbench.errors import StepbenchError
from stepbench.records.measurement import Counters, Measurement
from stepbench.stats import measures

Kind = Literal["holds", "fails", "inconclusive", "unsupported"]

# What of `Counters` can be claimed: numbers that repeat exactly.
COUNTERS = (
    "forwards",
    "updates",
    "flops",
    "matmul_flops",
    "operators",
    "saved_bytes",
    "blocks",
    "recomputed_blocks",
    "recomputed_products",
    "loader_processes",
    "batches_ahead",
    "epoch_batches",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What a claim is about.

    `of` gives its value from a baseline and a case measured beside it. `unit` is "x" for a multiple
    of the baseline's and empty for a number of its own.
    """

    name: str
    unit: Literal["x", ""]
    of: Callable[[Measurement, Measurement], float]


def _speed(baseline: Measurement, case: Measurement) -> float:
    return measures.step_ratio(baseline, case)


def _memory(baseline: Measurement, case: Measurement) -> float:
    return case.memory.steady_step.allocated_bytes / baseline.memory.steady_step.allocated_bytes


def _working_memory(baseline: Measurement, case: Measurement) -> float:
    return case.memory.working_bytes / baseline.memory.working_bytes


SPEED = Quantity(name="speed", unit="x", of=_speed)
MEMORY = Quantity(name="memory", unit="x", of=_memory)
WORKING_MEMORY = Quantity(name="working memory", unit="x", of=_working_memory)


def counted(counters: Counters, name: str) -> int:
    """A counter as one number: a mapping's sum, a tuple's length, an operator's calls."""
    if "." in name:
        return counters.operators.get(name, 0)
    value = getattr(counters, name)
    if isinstance(value, int):
        return value
    return len(value) if isinstance(value, tuple) else sum(value.values())


def _ratio(counter: str) -> Quantity:
    def of(baseline: Measurement, case: Measurement) -> float:
        if not (reference := counted(baseline.counters, counter)):
            raise StepbenchError(
                f"{counter} of the baseline is 0, which nothing is a multiple of; claim the number "
                f"itself: .count({counter!r}, …)"
            )
        return counted(case.counters, counter) / reference

    return Quantity(name=_known(counter), unit="x", of=of)


def _count(counter: str) -> Quantity:
    return Quantity(
        name=_known(counter), unit="", of=lambda _, case: counted(case.counters, counter)
    )


def _known(counter: str) -> str:
    if counter not in COUNTERS and "." not in counter:
        raise StepbenchError(
            f"{counter!r} is not a counter; there are {', '.join(COUNTERS)}, and every operator by "
            "its name, as aten.mm"
        )
    return counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A quantity of a combination, with the least or the most that it may be, or both."""

    combination: str
    quantity: Quantity
    at_least: float | None
    at_most: float | None

    def __post_init__(self) -> None:
        given = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        what = f"{self.combination}: {self.quantity.name}"
        if not given:
            raise StepbenchError(f"{what} claims nothing; give at_least=, at_most= or both")
        for name in ("at_least", "at_most"):
            bound = getattr(self, name)
            none_of_it = name == "at_most" and not self.quantity.unit and bound == 0
            if bound is not None and not (_is_positive(bound) or none_of_it):
                raise StepbenchError(
                    f"{what} {name}={bound!r}: a bound is a number above 0, in multiples of the "
                    "baseline's (0.5: half of it)"
                    if self.quantity.unit
                    else f"{what} {name}={bound!r}: a bound is a number above 0 (at_most may be 0)"
                )
        if given != sorted(given):
            raise StepbenchError(f"{what}: at_least={given[0]} is more than at_most={given[1]}")

    @property
    def bounds(self) -> str:
        """`at least 1.5x`, `at most 0.6x`, both, or `exactly 4`."""
        unit = self.quantity.unit
        if self.at_least == self.at_most:
            return f"exactly {self.at_least:g}{unit}"
        least = f"at least {self.at_least:g}{unit}" if self.at_least is not None else ""
        most = f"at most {self.at_most:g}{unit}" if self.at_most is not None else ""
        return " and ".join(filter(None, (least, most)))

    def judged(self, low: float, high: float) -> Kind:
        """Whether all between `low` and `high` is on the claim's side, on the other, or on both."""
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        if least <= low and high <= most:
            return "holds"
        return "fails" if high < least or low > most else "inconclusive"


def _is_positive(bound: Any) -> bool:
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    return number and math.isfinite(bound) and bound > 0


class Floor:
    """The claims of one combination. Each method adds one and returns the same floor.

    Bounds are multiples of the baseline's value (the same workload with nothing chosen), save those
    of `count`. Give `at_least`, `at_most` or both; equal is allowed.

    Raises:
        StepbenchError: no bound, one that is not above 0, or an unknown counter.
    """

    def __init__(self, combination: str) -> None:
        self.combination = combination
        self.claims: list[Claim] = []

    def speed(self, *, at_least: float | None = None, at_most: float | None = None) -> Floor:
        """Steps per second, as a multiple of the baseline's: 1.5 is half as fast again."""
        return self._claim(SPEED, at_least, at_most)

    def memory(self, *, at_least: float | None = None, at_most: float | None = None) -> Floor:
        """Peak bytes that tensors hold in a steady step, as a multiple of the baseline's."""
        return self._claim(MEMORY, at_least, at_most)

    def working_memory(
        self, *, at_least: float | None = None, at_most: float | None = None
    ) -> Floor:
        """That peak beyond parameters and optimizer state: activations, gradients, temporaries."""
        return self._claim(WORKING_MEMORY, at_least, at_most)

    def ratio(
        self, counter: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> Floor:
        """A counter of one step (`flops`, `saved_bytes`, `aten.mm`, …), in the baseline's."""
        return self._claim(_ratio(counter), at_least, at_most)

    def count(
        self, counter: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> Floor:
        """A counter of one step as the number it is: 2 `recomputed_blocks`."""
        return self._claim(_count(counter), at_least, at_most)

    def _claim(self, quantity: Quantity, at_least: float | None, at_most: float | None) -> Floor:
        self.claims.append(
            Claim(
                combination=self.combination,
                quantity=quantity,
                at_least=at_least,
                at_most=at_most,
            )
        )
        return self
