"""Tensors that an object holds, however deep: what a dataset has kept of the samples it made."""

from __future__ import annotations

import gc
from types import FrameType, ModuleType
from typing import Any

from torch import Tensor


def tensors_in(holder: object) -> list[Tensor]:
    """Every tensor that can be reached from it, each once.

    In attributes, containers, closures, classes and caches of functions (`functools.lru_cache`).
    What modules hold in their namespaces is not its own, and not followed.
    """
    found: list[Tensor] = []
    seen, waiting = {id(holder)}, [holder]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), Tensor):  # its own word (`__class__`) may be anything
            found.append(one)  # type: ignore[arg-type]
        elif not _is_everybodys(one):
            # What Python's collector does not track, as numbers and text, holds nothing.
            more = [each for each in gc.get_referents(one) if gc.is_tracked(each)]
            waiting += [each for each in more if id(each) not in seen]
            seen.update(map(id, more))
    return found


def _is_everybodys(one: Any) -> bool:
    namespace = type(one) is dict and "__builtins__" in one
    return namespace or isinstance(one, ModuleType | FrameType)
