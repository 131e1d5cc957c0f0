"""Workloads by name, spelled `gpt-1m` or `gpt-1m@seq=128,batch=4`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core import StepbenchError
from harness.machine import device_type
from harness.training.types import Workload
from harness.training.workloads import gpt

SPELLING = "gpt-1m@" + ",".join(f"{option}=…" for option in gpt.OPTIONS)


def names() -> list[str]:
    """Every workload's name."""
    return list(gpt.SHAPES)


def default(machine: Mapping[str, Any]) -> str:
    """The workload for a machine that nobody chose one for."""
    return "gpt-124m" if device_type(machine) == "cuda" else "gpt-1m"


def load(text: str) -> Workload:
    """The workload of that spelling; its `name` is the canonical one.

    Raises:
        StepbenchError: an unknown name or parameter, or a value out of range.
    """
    name, _, options = text.partition("@")
    if name not in gpt.SHAPES:
        raise StepbenchError(
            f"{name!r} is not a workload; there are {', '.join(names())} (`stepbench list`)"
        )
    return gpt.workload(name, _parsed(text, options))


def canonical(text: str) -> str:
    """The spelling that equal workloads share."""
    return load(text).name


def _parsed(text: str, options: str) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals or not value or key in parsed:
            raise StepbenchError(f"{text!r}: {option!r} must be key=value, each key once")
        parsed[key] = value
    return parsed
