"""One check of a machine: what it tries, where it applies, and how it ended in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stepbench.errors import plain
from stepbench.measuring.process import brief_traceback, in_child
from stepbench.records.jsonable import Jsonable
from stepbench.records.machine import device_type

Machine = Mapping[str, Any]
FindingKind = Literal["works", "does not", "not here"]


class NotHere(Exception):
    """The check found that this machine lacks what it needs; one line says what."""


class DoesNotWork(Exception):
    """The check saw something wrong; `traceback` is that of the process that it watched, if any."""

    def __init__(self, reason: str, traceback: str | None = None) -> None:
        super().__init__(reason)
        self.traceback = traceback


def applies(machine: Machine) -> str | None:
    """Nothing is lacking on any machine."""
    return None


def needs_gpu(machine: Machine) -> str | None:
    """Why what runs on NVIDIA GPUs only is not tried; None where there is one."""
    return "there is no NVIDIA GPU" if device_type(machine) == "cpu" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One declarative entry.

    Attributes:
        tries: what is tried, for JSON.
        run: called with the machine in a fresh process that has only imported. Returns one line of
            what it saw; any exception but `NotHere` means that it does not work.
        not_here: what this machine lacks for it, decided before anything starts; None: nothing.
        deadline_s: the process is killed after so long.
    """

    name: str
    tries: str
    run: Callable[[Machine], str]
    not_here: Callable[[Machine], str | None] = applies
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Jsonable):
    """How a check ended; `reason` is one line: what was seen, what is wrong, or what is missing."""

    name: str
    tries: str
    outcome: FindingKind
    reason: str
    seconds: float
    traceback: str | None = None


def find_out(check: Check, machine: Machine) -> Finding:
    """Run a check in a process of its own; whatever happens there is the finding."""
    if reason := check.not_here(machine):
        return _finding(check, {"outcome": "not here", "seen": reason, "seconds": 0.0})
    return _finding(check, tried(check.run, machine, check.deadline_s))


def tried(run: Callable[[Machine], Any], machine: Machine, deadline_s: float) -> dict[str, Any]:
    """How `run(machine)` ended in a fresh process: `outcome`, `seconds` and perhaps `traceback`.

    `seen` is what it returned (JSON) where it works, else one line of why it did not.
    """
    ended = in_child(_answer, run, machine, deadline_s=deadline_s)
    answer = ended.answer or {
        "outcome": "does not",
        "seen": ended.death,
        "traceback": ended.traceback or "\n".join(reversed(ended.stack or ())) or None,
    }
    return {**answer, "seconds": ended.wall_s}


def require(right: bool, wrong: str) -> None:
    """DoesNotWork unless the first argument holds."""
    if not right:
        raise DoesNotWork(wrong)


def device_of(machine: Machine) -> torch.device:
    """The device to run operators on in this process; on a CPU with one thread, as cases are."""
    if device_type(machine) == "cpu":
        torch.set_num_threads(1)
    return torch.device(device_type(machine))


def _finding(check: Check, answer: Mapping[str, Any]) -> Finding:
    return Finding(
        name=check.name,
        tries=check.tries,
        outcome=answer["outcome"],
        reason=plain(answer["seen"]),
        seconds=answer["seconds"],
        traceback=answer.get("traceback"),
    )


def _answer(run: Callable[[Machine], Any], machine: Machine) -> dict[str, Any]:
    try:
        return {"outcome": "works", "seen": run(machine)}
    except NotHere as error:
        return {"outcome": "not here", "seen": str(error)}
    except DoesNotWork as error:
        traceback = error.traceback or brief_traceback(error)
        return {"outcome": "does not", "seen": str(error), "traceback": traceback}
