"""How a workload with parameters is spelled: `gpt-1m@seq=128,batch=4`."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from stepbench.errors import StepbenchError

Shape = TypeVar("Shape")


def parameters(text: str) -> tuple[str, dict[str, str]]:
    """The name and the parameters of a spelling; StepbenchError for one that is no key=value."""
    name, _, options = text.partition("@")
    parsed: dict[str, str] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals or not value or key in parsed:
            raise StepbenchError(f"{text!r}: {option!r} must be key=value, each key once")
        parsed[key] = value
    return name, parsed


def configured(
    name: str, default: Shape, options: Mapping[str, str], settable: Sequence[str]
) -> tuple[Shape, str]:
    """A shape with some parameters set, and the spelling that equal shapes share.

    Raises:
        StepbenchError: an unknown parameter, or a value of the wrong kind or out of range.
    """
    kinds = typing.get_type_hints(type(default))
    shape = default
    for key, value in options.items():
        if key not in settable:
            raise StepbenchError(f"{name} has no parameter {key!r}; it has {', '.join(settable)}")
        shape = replace(shape, **{key: _valued(f"{name}: {key}", kinds[key], value)})  # type: ignore[type-var]
    changed = [
        f"{key}={getattr(shape, key)}"
        for key in settable
        if getattr(shape, key) != getattr(default, key)
    ]
    return shape, "@".join(filter(None, (name, ",".join(changed))))


def _valued(what: str, kind: Any, value: str) -> Any:
    if choices := typing.get_args(kind):
        if value not in choices:
            raise StepbenchError(f"{what}={value} must be one of {', '.join(choices)}")
        return value
    try:
        return kind(value)
    except ValueError:
        raise StepbenchError(f"{what}={value} is not a number") from None


def require(right: bool, shape: Any, settable: Sequence[str], rule: str) -> None:
    """StepbenchError with the rule and the values unless `right`."""
    if not right:
        values = ", ".join(f"{key}={getattr(shape, key)}" for key in settable)
        raise StepbenchError(f"{rule}; got {values}")
