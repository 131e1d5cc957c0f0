"""How far a stage of the gate is: the case, the pair, and about how long the stage still takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from stepbench.records.case import Case

# Between two lines: a log shows that something happens and stays readable.
QUIET_S = 10.0


class Pace:
    """Tells of the pairs of one stage that `cases` cases go through, `pairs` new ones each."""

    def __init__(
        self,
        tell: Callable[[str], None],
        cases: int,
        pairs: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._clock = tell, clock
        self._cases_left, self._pairs, self._measured = cases, pairs, -1
        self._began_s = self._told_s = clock()
        self._case: Case | None = None

    def turn_to(self, case: Case) -> None:
        """The next case of the stage; its first pair is told at once."""
        self._case = case
        self._cases_left -= 1
        self._told_s = self._clock() - QUIET_S

    def begins(self, done: int, wanted: int) -> None:
        """After `done` of a case's `wanted` pairs the next one begins."""
        self._measured += 1
        now_s = self._clock()
        if now_s - self._told_s < QUIET_S:
            return
        self._told_s = now_s
        left = max(1, wanted - done) + self._cases_left * self._pairs
        eta = ""
        if self._measured:
            left_s = (now_s - self._began_s) / self._measured * left
            eta = f", about {_duration(left_s)} left of this stage"
        self._tell(f"{self._case}: pair {done + 1} of {max(wanted, done + 1)}{eta}")


def _duration(seconds: float) -> str:
    """`40 s`, or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
