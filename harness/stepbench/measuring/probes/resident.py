"""What the process itself held in a step: also what is no tensor, as NumPy's arrays are.

Of its resident pages those that no file backs. They say little as they come: freed memory stays
with the C library, and is used again unseen. So large blocks are given back at once while this
looks, and the kernel's mark of the most is set back before. Linux only; steps are slower meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# <malloc.h>, and proc(5) on clear_refs.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, RESET_PEAK = -1, -3, -4, "5"
THRESHOLD_BYTES = 65536
# What the C library's own adjustment, which setting a threshold ends, would reach at most.
LARGEST_MMAP_BYTES, LARGEST_TRIM_BYTES = 32 * 2**20, 64 * 2**20


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for as long as this process lives.

    It gives large blocks back to the kernel and takes them again within a step, by thresholds that
    it adjusts as it goes. Processes of equal code therefore differ: two of a 160 ms step parted by
    5% (root mean square of 6 pairs), and by 1% when they kept their memory. For comparing two
    processes only: a user's own training pays for what this leaves out.
    """
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def anonymous_bytes() -> int:
    """Resident bytes of this process that no file backs, freed ones given back before."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status()["RssAnon"]


def anonymous_peak_bytes(step: Callable[[], None]) -> int | None:
    """The most of them while `step` ran; None where the kernel's mark cannot be set back."""
    with _freed_at_once():
        return _peak(step)


@contextmanager
def _freed_at_once() -> Iterator[None]:
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
    library.mallopt(M_TRIM_THRESHOLD, THRESHOLD_BYTES)
    library.malloc_trim(0)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_TRIM_BYTES)


def _peak(step: Callable[[], None]) -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:
        return None
    before = _status()
    if before["VmHWM"] > 1.01 * before["VmRSS"]:
        return None
    step()
    after = _status()
    # What files back only grows: the mark held no more of it.
    return after["VmHWM"] - after["RssFile"] - after["RssShmem"]


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    told = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in told}
