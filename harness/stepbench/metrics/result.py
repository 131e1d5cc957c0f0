"""A case's outcome in numbers: the processes that its figures come from, and its machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepbench.records.case import Case
from stepbench.records.measurement import Measurement
from stepbench.records.run import Record, Round
from stepbench.stats import measures

UNKNOWN: Mapping[str, Any] = {"gpus": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What metrics are read from.

    `processes` are those that figures come from: the case's in the `judged` ones of its `rounds`.
    A baseline without a record of its own has no rounds; its processes are those of other cases'.
    """

    case: Case
    machine: Mapping[str, Any]
    processes: tuple[Measurement, ...]
    rounds: tuple[Round, ...] = ()
    judged: tuple[Round, ...] = ()

    @classmethod
    def of(cls, record: Record, machine: Mapping[str, Any] = UNKNOWN) -> Result:
        """A record with the machine that it was measured on."""
        judged = measures.judged(record)
        return cls(
            case=record.case,
            machine=machine,
            processes=tuple(one.case for one in judged),
            rounds=record.rounds,
            judged=judged,
        )
