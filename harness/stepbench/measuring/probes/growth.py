"""Memory that grows with every step: a leak, told from what a process keeps only once.

Two readings around steps that run anyway say whether there may be one, and cost no timed step
anything. Where there may, further steps on one batch decide, in parts: what a dataset keeps of
other batches does not grow there, nor what the first steps of a process allocate; rubbish is
collected before each reading; what is made once lies in one part, and the part that grew least
counts. Bytes of tensors are exact; what else a process holds scatters by some 0.5 MiB a step on a
busy machine. A dataset that leaks itself is not told from one that caches, and not reported.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import psutil

from stepbench.measuring.probes.memory import UNREADABLE, MemoryProbe

# Below it a step's growth is none: it fills 6 GiB in 100,000 steps.
MINIMUM_BYTES = 2**16
# What a process may keep beside tensors without that its peak were doubtful: half of what makes a
# report show that peak.
BESIDE_BYTES = 4 * 2**20
PARTS, STEPS = 3, 4  # steps in each part


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is held after so many steps, in bytes; None where it cannot be read.

    `tensor_bytes`: by tensors on the device. `process_bytes`: by this process alone in the host's
    memory (unique set size), tensors there included.
    """

    steps: int
    tensor_bytes: int | None
    process_bytes: int | None


def held(probe: MemoryProbe, steps: int) -> Held:
    """A reading between steps."""
    process_bytes = None
    with suppress(
        AttributeError
    ):  # glibc's: how much of what is free it keeps changes all the time
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(*UNREADABLE):
        process_bytes = psutil.Process().memory_full_info().uss
    return Held(steps=steps, tensor_bytes=probe.held(), process_bytes=process_bytes)


def beside_tensors(before: Held, after: Held) -> int:
    """Bytes that the process kept between two readings and that are no tensor; 0 if unknown."""
    tensors, process = (
        _known((getattr(before, name), getattr(after, name)))
        for name in ("tensor_bytes", "process_bytes")
    )
    if tensors is None or process is None:
        return 0
    return process[1] - process[0] - (tensors[1] - tensors[0])


def decided(probe: MemoryProbe, steps: int, step: Callable[[], object]) -> list[Held]:
    """Readings before, amid and after `PARTS * STEPS` further steps."""
    gc.collect()
    readings = [held(probe, steps)]
    for part in range(PARTS):
        for _ in range(STEPS):
            step()
        gc.collect()
        readings.append(held(probe, steps + (part + 1) * STEPS))
    return readings


def per_step(readings: Sequence[Held], *, on_host: bool) -> float | None:
    """Bytes that a step adds, the least over the intervals between readings; 0.0 below the minimum.

    `on_host`: tensors lie in the host's memory, where both figures see them. None where nothing
    could be read.
    """
    figures = (
        [one.tensor_bytes for one in readings],
        [one.process_bytes for one in readings],
    )
    steps = [one.steps for one in readings]
    grown = [_least(steps, known) for amounts in figures if (known := _known(amounts))]
    if not grown:
        return None
    total = max(grown) if on_host else sum(grown)
    return total if total >= MINIMUM_BYTES else 0.0


def _known(amounts: Sequence[int | None]) -> list[int] | None:
    known = [one for one in amounts if one is not None]
    return known if len(known) == len(amounts) else None


def _least(steps: Sequence[int], amounts: Sequence[int]) -> float:
    rates = (
        (after - before) / (later - earlier)
        for (earlier, later), (before, after) in zip(
            pairwise(steps), pairwise(amounts), strict=True
        )
    )
    return max(0.0, min(rates))
