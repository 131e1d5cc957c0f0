"""What a test may say of a combination: its speed, memory and counters beside the baseline's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stepbench.errors import StepbenchError
from stepbench.metrics import counts
from stepbench.metrics.beside import (
    MEMORY_RATIO,
    SPEEDUP,
    WORKING_MEMORY_RATIO,
    of_case,
    ratio_of,
)
from stepbench.metrics.memory import SAVED_BYTES
from stepbench.metrics.metric import Metric
from stepbench.records.measurement import Measurement
from stepbench.records.run import Round

Kind = Literal["holds", "fails", "inconclusive", "unsupported"]

# What can be claimed by its key: numbers that repeat exactly.
COUNTERS: Mapping[str, Metric[Measurement]] = {
    one.key: one
    for one in (
        counts.FORWARDS,
        counts.UPDATES,
        counts.FLOPS,
        counts.MATMUL_FLOPS,
        counts.OPERATORS,
        SAVED_BYTES,
        counts.BLOCKS,
        counts.RECOMPUTED_BLOCKS,
        counts.RECOMPUTED_PRODUCTS,
        counts.LOADER_PROCESSES,
        counts.BATCHES_AHEAD,
        counts.EPOCH_BATCHES,
    )
}


def _counter(name: str) -> Metric[Measurement]:
    """The metric of that key, or the calls of an operator; StepbenchError where it is neither."""
    if name in COUNTERS:
        return COUNTERS[name]
    if "." in name:
        return counts.calls_of(name)
    raise StepbenchError(
        f"{name!r} is not a counter; there are {', '.join(COUNTERS)}, and every operator by its "
        "name, as aten.mm"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A metric of a combination, with the least or the most that it may be, or both.

    `name` is what a person calls the metric.
    """

    combination: str
    name: str
    metric: Metric[Round]
    at_least: float | None
    at_most: float | None

    def __post_init__(self) -> None:
        given = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        what = f"{self.combination}: {self.name}"
        if not given:
            raise StepbenchError(f"{what} claims nothing; give at_least=, at_most= or both")
        for name in ("at_least", "at_most"):
            bound = getattr(self, name)
            none_of_it = name == "at_most" and not self.unit and bound == 0
            if bound is not None and not (_is_positive(bound) or none_of_it):
                raise StepbenchError(
                    f"{what} {name}={bound!r}: a bound is a number above 0, in multiples of the "
                    "baseline's (0.5: half of it)"
                    if self.unit
                    else f"{what} {name}={bound!r}: a bound is a number above 0 (at_most may be 0)"
                )
        if given != sorted(given):
            raise StepbenchError(f"{what}: at_least={given[0]} is more than at_most={given[1]}")

    @property
    def unit(self) -> Literal["x", ""]:
        """Of its bounds: multiples of the baseline's, or numbers of their own."""
        return "x" if self.metric.unit == "ratio" else ""

    def of(self, one: Round) -> float:
        """What is claimed about, in one round.

        Raises:
            StepbenchError: it is a multiple of what the baseline has none of.
        """
        value = self.metric.read(one)
        if value is None:
            raise StepbenchError(
                f"{self.name} of the baseline is 0, which nothing is a multiple of; claim the "
                f"number itself: .count({self.name!r}, …)"
            )
        return value

    @property
    def bounds(self) -> str:
        """`at least 1.5x`, `at most 0.6x`, both, or `exactly 4`."""
        unit = self.unit
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
        return self._claim("speed", SPEEDUP, at_least, at_most)

    def memory(self, *, at_least: float | None = None, at_most: float | None = None) -> Floor:
        """Peak bytes that tensors hold in a steady step, as a multiple of the baseline's."""
        return self._claim("memory", MEMORY_RATIO, at_least, at_most)

    def working_memory(
        self, *, at_least: float | None = None, at_most: float | None = None
    ) -> Floor:
        """That peak beyond parameters and optimizer state: activations, gradients, temporaries."""
        return self._claim("working memory", WORKING_MEMORY_RATIO, at_least, at_most)

    def ratio(
        self, counter: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> Floor:
        """A counter of one step (`flops`, `saved_bytes`, `aten.mm`, …), in the baseline's."""
        return self._claim(counter, ratio_of(_counter(counter), counter), at_least, at_most)

    def count(
        self, counter: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> Floor:
        """A counter of one step as the number it is: 2 `recomputed_blocks`."""
        return self._claim(counter, of_case(_counter(counter)), at_least, at_most)

    def _claim(
        self, name: str, metric: Metric[Round], at_least: float | None, at_most: float | None
    ) -> Floor:
        self.claims.append(
            Claim(
                combination=self.combination,
                name=name,
                metric=metric,
                at_least=at_least,
                at_most=at_most,
            )
        )
        return self
