"""How long the main thread waited for a processor: the run delay of /proc/self/schedstat.

The second number of that file counts the nanoseconds in which the thread could have run and did
not, because other threads had the processor (Linux, Documentation/scheduler/sched-stats.rst). Wall
time less run delay is what a step would have taken on a quiet machine. That holds for one thread in
one process only: other threads' delays are not in it, and a rank that waits for a delayed peer
sleeps. Time that a hypervisor takes is not in it either.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from functools import cache

SCHEDSTAT = "/proc/self/schedstat"
# The probe makes two threads share one processor for this long, and asks at most so often.
FORCED_S, TRIES = 0.02, 3
# Of what the thread waited, so large a part must be in the file, and it must have waited so long.
LEAST_SHARE, LEAST_WAIT_S = 0.7, 0.004


class RunDelay:
    """Reads this process' run delay; made in the process that reads it, by its main thread."""

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._file = open(SCHEDSTAT, "rb", buffering=0) if main and sound() else None  # noqa: SIM115

    def read_ns(self) -> int | None:
        """Nanoseconds so far in which the thread waited for a processor; None where unknown."""
        return _waited_ns(self._file.fileno()) if self._file else None


@cache
def sound() -> bool:
    """Whether this kernel counts run delay, by a forced delay; to be asked by the main thread.

    Processes that are forked afterwards inherit the answer. Some sandboxes have the file and leave
    zeros in it, which would pass for a quiet machine.
    """
    try:
        with open(SCHEDSTAT, "rb", buffering=0) as file:
            return any(_counts_forced_delay(file.fileno()) for _ in range(TRIES))
    except (OSError, ValueError, IndexError):
        return False


def _waited_ns(descriptor: int) -> int:
    return int(os.pread(descriptor, 128, 0).split()[1])


def _counts_forced_delay(descriptor: int) -> bool:
    """Let a second thread compete for one processor, and see whether the file counts it."""
    allowed = os.sched_getaffinity(0)
    until = time.perf_counter() + FORCED_S
    rival = threading.Thread(target=_spin, args=(until,))
    os.sched_setaffinity(0, {min(allowed)})  # this thread; the rival inherits it
    try:
        rival.start()
        began_s, cpu_s, before_ns = time.perf_counter(), time.thread_time(), _waited_ns(descriptor)
        _spin(until)
        counted_s = (_waited_ns(descriptor) - before_ns) / 1e9
        waited_s = time.perf_counter() - began_s - (time.thread_time() - cpu_s)
    finally:
        rival.join()
        os.sched_setaffinity(0, allowed)
    return waited_s >= LEAST_WAIT_S and counted_s >= LEAST_SHARE * waited_s


def _spin(until: float) -> None:
    block = bytes(1 << 20)
    while time.perf_counter() < until:
        hashlib.sha256(block)  # a long computation that holds no lock of the interpreter
