"""Dataclasses that cross processes and files as JSON, and are what they say when they come back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, ClassVar, Literal, Self

# Where fields that no class knows are collected; None: such a field is an error.
_UNKNOWN: ContextVar[set[str] | None] = ContextVar("_UNKNOWN", default=None)


@contextmanager
def ignoring_unknown() -> Iterator[set[str]]:
    """Leave out fields that no class here knows, and collect them, as `Record.colour`.

    Files of a newer Stepbench have such fields: within one layout fields are only added. What
    processes of this version tell each other has none, and there an unknown field is a mistake.
    """
    unknown: set[str] = set()
    token = _UNKNOWN.set(unknown)
    try:
        yield unknown
    finally:
        _UNKNOWN.reset(token)


@cache
def _reviver(kind: Any) -> Callable[[Any], Any]:
    """What turns decoded JSON back into the annotated type; ValueError where it is of another."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Jsonable):
        return kind.from_json
    if kind is Any:
        return lambda value: value
    if origin in (typing.Union, types.UnionType):
        return partial(_one_of, kind, [_reviver(one) for one in arguments])
    if origin is tuple:
        return partial(_tuple_of, kind, _reviver(arguments[0]))
    if origin is Mapping:
        return partial(_mapping_to, kind, _reviver(arguments[1]))
    if origin is Literal:
        return partial(_literal, kind, arguments)
    # Truth values are numbers to Python, and a float may have been written as an integer.
    fitting = {float: (int, float), types.NoneType: (types.NoneType,)}.get(kind, (kind,))
    return partial(_plain, kind, fitting)


def _plain(kind: Any, fitting: tuple[type, ...], value: Any) -> Any:
    truth = isinstance(value, bool)
    _require(isinstance(value, fitting) and truth == (kind is bool), kind, value)
    return value


def _one_of(kind: Any, revivers: Sequence[Callable[[Any], Any]], value: Any) -> Any:
    for revive in revivers:
        with suppress(ValueError, KeyError):
            return revive(value)
    raise _wrong(kind, value)


def _tuple_of(kind: Any, revive: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    _require(isinstance(value, list | tuple), kind, value)
    return tuple(map(revive, value))


def _mapping_to(kind: Any, revive: Callable[[Any], Any], value: Any) -> dict[str, Any]:
    _require(isinstance(value, Mapping), kind, value)
    return {name: revive(item) for name, item in value.items()}


def _literal(kind: Any, values: tuple[Any, ...], value: Any) -> Any:
    _require(value in values, kind, value)
    return value


def _require(right: bool, kind: Any, value: Any) -> None:
    if not right:
        raise _wrong(kind, value)


def _wrong(kind: Any, value: Any) -> ValueError:
    return ValueError(f"{str(value)[:40]!r} is no {getattr(kind, '__name__', kind)}")


@cache
def _fields(kind: Any) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    """What revives each field of a dataclass, and the fields that have no default."""
    names = {one.name for one in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    revivers = {name: _reviver(one) for name, one in hints.items() if name in names}
    needed = frozenset(
        one.name
        for one in dataclasses.fields(kind)
        if one.default is one.default_factory is dataclasses.MISSING
    )
    return revivers, needed


class Jsonable:
    """A dataclass that survives JSON.

    An unknown field is a ValueError naming it, except within `ignoring_unknown`. So is a missing
    one, unless it has a default: records stay readable when a later version adds what they could
    not know. Fields that an earlier version wrote and no later one reads are `RETIRED`, and left
    out. A field's name is its key on disk and is never changed.
    """

    __slots__ = ()
    RETIRED: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} must be an object, not {type(data).__name__}")
        revivers, needed = _fields(typing.cast(Hashable, cls))
        unknown = set(data) - set(revivers) - cls.RETIRED
        if (ignored := _UNKNOWN.get()) is not None:
            ignored.update(f"{cls.__name__}.{name}" for name in unknown)
            unknown = set()
        if wrong := sorted(unknown | (needed - set(data))):
            raise ValueError(f"{cls.__name__} has unknown or missing fields: {', '.join(wrong)}")
        known = (name for name in data if name in revivers)
        return cls(**{name: revivers[name](data[name]) for name in known})
