"""Steps that are slow at the same place in several processes: a cost that comes every so often.

An optimizer that decomposes its matrices every tenth step is such a cost. On a busy machine one
process alone cannot show it: others slow steps down too, but not the same ones in two processes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence, Set

SLOW = 1.2


def slow_steps(processes: Sequence[Mapping[int, float]]) -> frozenset[int]:
    """The steps over 1.2x the median of their process, in two processes at least.

    `processes` are seconds by the number of the step since the process began. Of many processes, a
    step has to be slow in half of those that timed it.
    """
    timed, slow = Counter[int](), Counter[int]()
    for steps in processes:
        limit_s = SLOW * statistics.median(steps.values())
        timed.update(steps.keys())
        slow.update(number for number, seconds in steps.items() if seconds > limit_s)
    return frozenset(n for n, count in slow.items() if count >= max(2, timed[n] / 2))


def period(slow: Set[int], first: int, last: int) -> int | None:
    """After how many steps slow steps are slow again; None where they are not.

    The number that most slow steps agree on, the smallest of several: each that has all its
    neighbours at that distance, from `first` to `last`. One that is slow by chance hides no period.
    """

    def agreeing(length: int) -> int:
        return sum(_repeats(slow, number, length, first, last) for number in slow)

    best = max(range(1, last - first + 1), key=agreeing, default=1)
    return best if 2 * agreeing(best) > len(slow) else None


def _repeats(slow: Set[int], number: int, length: int, first: int, last: int) -> bool:
    neighbours = [one for one in (number - length, number + length) if first <= one <= last]
    return bool(neighbours) and all(one in slow for one in neighbours)
