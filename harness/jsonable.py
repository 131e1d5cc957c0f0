"""Dataclasses that cross processes and files as JSON, and are what they say when they come back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Self


def _revive(kind: Any, value: Any) -> Any:
    """Turn decoded JSON back into the annotated type; ValueError where it is of another."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Jsonable):
        return kind.from_json(value)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _revive_one_of(arguments, value)
    if origin is tuple:
        _require(isinstance(value, list | tuple), kind, value)
        return tuple(_revive(arguments[0], item) for item in value)
    if origin is Mapping:
        _require(isinstance(value, Mapping), kind, value)
        return {name: _revive(arguments[1], item) for name, item in value.items()}
    if origin is Literal:
        _require(value in arguments, kind, value)
    else:
        truth = isinstance(value, bool)  # which Python takes for a number
        fits = isinstance(value, (int, float) if kind is float else kind)
        _require(fits and truth == (kind is bool), kind, value)
    return value


def _revive_one_of(kinds: Sequence[Any], value: Any) -> Any:
    for kind in kinds:
        if kind is not type(None):
            with suppress(ValueError, KeyError):
                return _revive(kind, value)
    _require(value is None and type(None) in kinds, " or ".join(map(str, kinds)), value)
    return None


def _require(right: bool, kind: Any, value: Any) -> None:
    if not right:
        raise ValueError(f"{str(value)[:40]!r} is no {getattr(kind, '__name__', kind)}")


class Jsonable:
    """A dataclass that survives JSON.

    An unknown field is a ValueError naming it, and so is a missing one unless it has a default:
    records stay readable when a later version adds what they could not know.
    """

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} must be an object, not {type(data).__name__}")
        kinds = typing.get_type_hints(cls)
        needed = {
            one.name
            for one in dataclasses.fields(cls)  # type: ignore[arg-type]
            if one.default is one.default_factory is dataclasses.MISSING
        }
        wrong = sorted((set(data) - set(kinds)) | (needed - set(data)))
        if wrong:
            raise ValueError(f"{cls.__name__} has unknown or missing fields: {', '.join(wrong)}")
        return cls(**{name: _revive(kinds[name], value) for name, value in data.items()})
