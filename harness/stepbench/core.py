"""The words every layer shares: combinations, cases, outcomes, records and runs.

Standard library only, so that reading results works where torch is not installed. Every class
crosses processes and files as JSON. What one process observed stands in `observed.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stepbench.jsonable import Jsonable
from stepbench.observed import Measurement

# The ruler's version. Raise it whenever a change makes the same case give another number.
MEASURE_VERSION = 4

# Characters: two lines of a terminal.
LONGEST_REASON = 200

OutcomeKind = Literal["ok", "oom", "unsupported", "invalid", "failed"]
Phase = Literal["build", "data", "forward", "backward", "update", "warm-up", "other"]


def plain(text: str) -> str:
    """One line without control characters: those are spelled out (`\\x1b`), never sent."""
    line = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )


class StepbenchError(Exception):
    """A mistake that a person can mend, told in one line; the command ends with exit code 2.

    What a person typed is part of it: control characters are spelled out.
    """

    def __str__(self) -> str:
        return plain(super().__str__())


@dataclass(frozen=True, slots=True)
class Combination(Jsonable):
    """At most one technique an axis, baselines dropped: equal sets are equal, `{}` is `baseline`.

    `training.techniques.combine` makes them from names, in the order of spelling.
    """

    techniques: Mapping[str, str] = field(default_factory=dict)  # {axis: technique}

    def __str__(self) -> str:
        return "+".join(self.techniques.values()) or "baseline"

    def __hash__(self) -> int:
        return hash(frozenset(self.techniques.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Jsonable):
    """A workload (its canonical spelling) under a combination on a number of ranks.

    `batch_factor` is how many of the workload's global batches make one of the case's: 1 splits
    the same batch over the ranks (strong scaling), `ranks` grows it with them (weak scaling).
    """

    workload: str
    combination: Combination = Combination()
    ranks: int = 1
    batch_factor: int = 1

    def __str__(self) -> str:
        return f"{self.workload} {self.chosen}"

    @property
    def chosen(self) -> str:
        """All but the workload: `ddp on 2 ranks, global batch x2`."""
        return f"{self.combination}{self.spread}"

    @property
    def spread(self) -> str:
        """The ranks and the batch, each where it is not 1: ` on 2 ranks, global batch x2`."""
        ranks = f" on {self.ranks} ranks" if self.ranks > 1 else ""
        grown = f", global batch x{self.batch_factor}" if self.batch_factor > 1 else ""
        return f"{ranks}{grown}"

    @property
    def baseline(self) -> Case:
        """The same workload, nothing chosen, one rank."""
        return Case(workload=self.workload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Jsonable):
    """How a case ended. `reason` is one line and always there unless the case is `ok`.

    The reason of an `ok` case says what its number does not mean. `traceback` is that of the error,
    outermost call first, where there was one. A reason of more than two lines of a terminal is cut,
    and stands as a whole at the traceback's end.
    """

    kind: OutcomeKind
    reason: str | None = None
    phase: Phase | None = None
    traceback: str | None = None

    def __post_init__(self) -> None:
        if self.reason is None or len(self.reason) <= LONGEST_REASON:
            return
        whole = "\n".join(filter(None, (self.traceback, self.reason)))
        object.__setattr__(self, "traceback", whole)
        object.__setattr__(self, "reason", f"{self.reason[: LONGEST_REASON - 2]} …")

    @property
    def ok(self) -> bool:
        return self.kind == "ok"

    def __str__(self) -> str:
        where = f" in {self.phase}" if self.phase else ""
        return f"{self.kind}{where}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round(Jsonable):
    """One fresh process of the case and one of its baseline; `order` says which ran first."""

    order: Literal["case first", "baseline first"]
    case: Measurement
    baseline: Measurement

    def __post_init__(self) -> None:
        for one in (self.case, self.baseline):
            if min(one.step_s, default=0.0) <= 0 or one.memory.steady_step.allocated_bytes <= 0:
                raise ValueError("a process timed no step, or held no memory")
            if not len(one.losses) == len(one.grad_norms) == len(self.baseline.losses):
                raise ValueError("its losses and gradient norms are not of the same steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Jsonable):
    """One case's measurement with all that is needed to judge it and to repeat it.

    Rounds that were measured are kept whatever the outcome.
    """

    case: Case
    outcome: Outcome
    rounds: tuple[Round, ...]
    measured_at: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        if self.outcome.ok and not self.rounds:
            raise ValueError(f"{self.case} is ok without a round")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(Jsonable):
    """The machine's own speed at one moment; None where the machine has no such path.

    Copies to the device start in pinned memory, or in pageable where the name says so.
    """

    measured_at: str
    matmul_dtype: str
    matmul_flops_per_s: float
    memory_bytes_per_s: float
    host_to_device_bytes_per_s: float | None
    pageable_to_device_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Jsonable):
    """What the records of one file have in common.

    `commit` is that of the project measured, None outside a repository; `edited` says whether
    uncommitted edits were part of it. `software` holds torch's version and the digest of the
    package; `settings` rounds and step limits.
    """

    id: str
    started_at: str
    measure_version: int
    machine: Mapping[str, Any]
    commit: str | None
    edited: bool
    software: Mapping[str, str]
    settings: Mapping[str, Any]
