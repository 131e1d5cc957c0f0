"""What a figure is: how it is read, summarised, judged by the gate, and tracked by ASV.

Observations are merged over ranks where they are made; a metric reads what was merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from stepbench.metrics.result import Result
from stepbench.metrics.summary import Read, median
from stepbench.records.run import Record

Source = TypeVar("Source")  # Measurement, Round or Result
Better = Literal["lower", "higher", "neither"]
# ASV shows these words; a report scales and formats by them.
Counted = Literal["FLOP", "calls", "graphs", "breaks", "count"]
Unit = (
    Counted
    | Literal["seconds", "bytes", "ratio", "share", "difference", "value"]
    | Literal["items/s", "J", "W", "MHz", "°C"]
)
COUNTED: tuple[Counted, ...] = get_args(Counted)


@dataclass(frozen=True, slots=True)
class Exact:
    """The gate compares the number exactly, and `parts` by name; less is better.

    `key` is its name in counters on disk, where that is not the metric's own.
    """

    key: str | None = None


@dataclass(frozen=True, slots=True)
class BeyondSpread:
    """The gate tells a difference beyond what a side's own processes showed; less is better.

    `parts` explain it and are never judged alone. `key` as for `Exact`.
    """

    key: str | None = None


@dataclass(frozen=True, slots=True)
class Relative:
    """The gate compares `parts`, one value a step, and names a relative difference beyond rounding.

    It fails there, unless it is only `told`.
    """

    key: str | None = None
    told: bool = False


@dataclass(frozen=True, slots=True)
class Paired:
    """Noise is larger than what matters: it is judged by pairs of processes measured in turn."""

    key: str | None = None


Policy = Exact | BeyondSpread | Relative | Paired


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric(Generic[Source]):
    """One figure, in base units.

    Attributes:
        key: its name in JSON and, after `measure_`, in ASV; never renamed.
        unit: formatting and ASV's unit follow from it.
        better: which way is better, if any.
        about: what it is, in one sentence.
        read: the number, or None where it was not observed, never 0 instead.
        parts: what the number is made of, by operator, category or step.
        summary: what stands for a case's processes or rounds.
        gate: how the gate judges it; None is a diagnostic, which never gates.
        revision: raised by a new definition, which ends only this metric's series in ASV.
        asv: what ASV tracks: samples, one a process; the largest process; their median; or nothing.
            Only where lower is better, because ASV takes an increase for a regression.

    Raises:
        ValueError: ASV is to track a figure of which less is not better.
    """

    key: str
    unit: Unit
    better: Better
    about: str
    read: Callable[[Source], float | None]
    parts: Callable[[Source], Mapping[str, float]] | None = None
    summary: Callable[[Read, Result], Any] = median
    gate: Policy | None = None
    revision: int = 1
    asv: Literal["samples", "largest", "median"] | None = None

    def __post_init__(self) -> None:
        if self.asv and self.better != "lower":
            raise ValueError(f"{self.key}: ASV tracks only what is better when it is lower")

    @property
    def counted(self) -> bool:
        """Whether it is a count, which repeats exactly."""
        return self.unit in COUNTED

    @property
    def gate_key(self) -> str:
        """Its name among the gate's counters on disk."""
        return (self.gate and self.gate.key) or self.key

    def parts_of(self, source: Source) -> Mapping[str, float]:
        """What the number is made of; empty where it has no parts."""
        return self.parts(source) if self.parts else {}

    def of(self, result: Result | Record) -> Any:
        """What stands for a case: a number, an `Estimate` over rounds, or None."""
        whole = result if isinstance(result, Result) else Result.of(result)
        return self.summary(self.read, whole)
