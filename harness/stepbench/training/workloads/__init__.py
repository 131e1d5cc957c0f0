"""Workloads by name: `gpt-1m`, `cnn-small@norm=group`, or your own as `module:attribute`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.training.types import Workload
from stepbench.training.workloads import gpt, own, photos
from stepbench.training.workloads.spelling import configured, parameters

SPELLING = (
    f"gpt-1m@{','.join(f'{one}=…' for one in gpt.OPTIONS)}, "
    f"cnn-small@{','.join(f'{one}=…' for one in photos.OPTIONS)}"
)


def names() -> list[str]:
    """Every workload's name."""
    return [*gpt.SHAPES, *photos.SHAPES]


def default(machine: Mapping[str, Any]) -> str:
    """The workload for a machine that nobody chose one for."""
    return "gpt-124m" if device_type(machine) == "cuda" else "gpt-1m"


def load(text: str) -> Workload:
    """The workload of that spelling; its `name` is the canonical one.

    Raises:
        StepbenchError: an unknown name or parameter, a value out of range, or a module that does
            not import.
    """
    name, options = parameters(text)
    if ":" in name:
        return own.load(name, options, text)
    if name in gpt.SHAPES:
        return gpt.workload(*configured(name, gpt.SHAPES[name], options, gpt.OPTIONS))
    if name in photos.SHAPES:
        return photos.workload(*configured(name, photos.SHAPES[name], options, photos.OPTIONS))
    raise StepbenchError(
        f"{name!r} is not a workload; there are {', '.join(names())} (`stepbench list`), "
        "and your own as module:attribute"
    )


def of_case(case: Case) -> Workload:
    """The case's workload, its global batch grown by the case's factor."""
    workload = load(case.workload)
    return replace(workload, global_batch=workload.global_batch * case.batch_factor)


def canonical(text: str) -> str:
    """The spelling that equal workloads share."""
    return load(text).name
