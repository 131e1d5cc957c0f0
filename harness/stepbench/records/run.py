"""What one file of results holds: a run, its records, and their rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stepbench.records.case import Case
from stepbench.records.jsonable import Jsonable
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome


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

    @property
    def source(self) -> str:
        """What was measured: `commit 0123456789 + edits`, or that there is no commit."""
        name = f"commit {self.commit[:10]}" if self.commit else "no commit"
        return name + (" + edits" if self.edited else "")
