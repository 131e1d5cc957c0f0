"""A workload of the user's own, `module:attribute`: a `Workload` or a function that makes one."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from stepbench.errors import StepbenchError
from stepbench.training.types import Workload


def load(name: str, options: Mapping[str, str], spelling: str) -> Workload:
    """Import the workload; parameters are passed to the function by keyword.

    The import happens in the process that forks the measuring ones, so it must not touch a device.

    Raises:
        StepbenchError: it does not import, is not a workload, or takes no such parameter.
    """
    made = _attribute(name)
    if callable(made):
        made = _called(name, made, {key: _literal(value) for key, value in options.items()})
    elif options:
        raise StepbenchError(f"{name} is no function: it takes no parameters, got {spelling!r}")
    if not isinstance(made, Workload):
        raise StepbenchError(
            f"{name} is {type(made).__name__}, not a Workload (stepbench.Workload)"
        )
    if torch.cuda.is_initialized():
        raise StepbenchError(
            f"importing {name} started CUDA, which forbids forking; build models and tensors "
            "inside the workload's functions"
        )
    if made.global_batch < 1:
        raise StepbenchError(f"{name}: global_batch must be at least 1; got {made.global_batch}")
    return replace(made, name=spelling)


def source_of(name: str) -> str | None:
    """The file that a `module:attribute` came from, once it is imported."""
    module = importlib.import_module(name.partition(":")[0])
    return inspect.getsourcefile(module)


def _attribute(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise StepbenchError(f"workload {name}: {_one_line(error)}") from error
    return found


def _called(name: str, function: Any, options: dict[str, Any]) -> Any:
    try:
        return function(**options)
    except Exception as error:
        raise StepbenchError(f"workload {name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
