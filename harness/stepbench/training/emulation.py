"""What this processor only emulates: told by one small product, not by a deadline.

A technique asks from its hooks, which run in the case's own fresh process: the process that decides
what is `unsupported` beforehand must never run an operator, and a name of a processor says less
than a product does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from stepbench.training.types import Unsupported

# float16, which a CPU without units for it is still measured with, takes 12 to 32 times as long.
MOST_TIMES = 100.0
REPEATS = 3


def require_bearable(
    what: str, emulated: Callable[[], object], plain: Callable[[], object]
) -> None:
    """Raise Unsupported where `emulated` takes over MOST_TIMES the processor time of `plain`.

    `plain` is the same product in float32. The best of so many repeats each: a busy machine
    changes little.
    """
    times = _processor_s(emulated) / _processor_s(plain)
    if times > MOST_TIMES:
        raise Unsupported(
            f"{what} takes {times:,.0f} times a float32 one on this processor: a step would take "
            "minutes"
        )


def _processor_s(work: Callable[[], object]) -> float:
    work()
    best_s = float("inf")
    for _ in range(REPEATS):
        began_s = time.process_time()
        work()
        best_s = min(best_s, time.process_time() - began_s)
    return max(best_s, 1e-9)
