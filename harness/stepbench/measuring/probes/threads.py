"""On how many threads operators really run in this process."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import torch

# torch splits an elementwise operator into parts of at least 32,768 elements, one a thread.
ELEMENTS_A_THREAD = 2**16
# About 3 ms of each thread. All have equal parts: who used less than this share of what the busiest
# did (a backend's thread that wakes up now and then) was none of them.
REPEATS, LEAST_SHARE = 64, 0.25
# A clock that ticks in 10 ms sees little in one try.
TRIES = 20


def ran_threads(wanted: int) -> int:
    """How many threads shared an operator that is large enough for `wanted` of them.

    By the processor time of each thread, so that a busy machine changes nothing. Tried again where
    they were not as many as wanted; what the last try saw.
    """
    values = torch.ones(wanted * ELEMENTS_A_THREAD)
    result, seen = torch.empty_like(values), 0
    for _ in range(TRIES):
        before = _processor_s()
        for _ in range(REPEATS):
            torch.exp(values, out=result)
        used = [after_s - before.get(thread, 0.0) for thread, after_s in _processor_s().items()]
        seen = sum(one > LEAST_SHARE * max(used) for one in used)
        if seen == wanted:
            break
    return seen


def _processor_s() -> dict[int, float]:
    """Seconds that each thread of this process has had a processor for."""
    times_s: dict[int, float] = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(OSError):  # it has ended
            # A thread's own clock, as the kernel numbers them (linux/posix-timers_types.h).
            times_s[thread] = time.clock_gettime(~thread << 3 | 6)
    return times_s
