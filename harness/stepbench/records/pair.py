"""Two processes timed beside each other, raw, and the ratios that stand for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stepbench.records.case import Case
from stepbench.records.jsonable import Jsonable

Method = Literal["ping-pong", "whole processes"]
# These values stand in records: they stay what they are, whatever people read.
INTERLEAVED: Final = "ping-pong"
WHOLE: Final = "whole processes"
Order = Literal["reference first", "candidate first"]
Figure = Literal["cpu_quartile", "cpu_total", "wall_total", "wall_median"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side(Jsonable):
    """A case in the code of a source tree (a folder); None: the code of this process."""

    case: Case
    tree: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Jsonable):
    """Consecutive steps of one process, raw; the first of them follows the other side's turn.

    `step_s`: seconds of each step by its boundary marks (CUDA events on a GPU). `cpu_s`: CPU
    seconds of the process in each, all its threads. `delay_s`: seconds that its main thread waited
    for a processor in each; empty where that is unknown, or says nothing of the step.
    """

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    delay_s: tuple[float, ...] = ()

    @property
    def own_s(self) -> tuple[float, ...]:
        """Wall seconds of each step without those in which others had its processor."""
        if not self.delay_s:
            return self.step_s
        return tuple(wall - delay for wall, delay in zip(self.step_s, self.delay_s, strict=True))


def lower_quartile(values: Sequence[float]) -> float:
    """The 25th percentile, interpolated (`statistics.quantiles`, inclusive); of one value itself.

    A neighbour can only slow a step down, so the faster steps are those that met nobody.
    """
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def _over_blocks(
    of_block: Callable[[Block], float],
) -> Callable[[Sequence[Block], Sequence[Block]], float]:
    """The median over blocks of the log-ratio of what stands for a block."""

    def log_ratio(old: Sequence[Block], new: Sequence[Block]) -> float:
        ratios = (math.log(of_block(b) / of_block(a)) for a, b in zip(old, new, strict=True))
        return statistics.median(ratios)

    return log_ratio


def _of_totals(
    of_steps: Callable[[Block], Sequence[float]],
) -> Callable[[Sequence[Block], Sequence[Block]], float]:
    """The log-ratio of the mean over all steps: a cost that falls on few of them counts in full."""

    def mean(blocks: Sequence[Block]) -> float:
        return statistics.fmean(value for block in blocks for value in of_steps(block))

    return lambda old, new: math.log(mean(new) / mean(old))


# What a pair is judged by, from the blocks of reference and candidate. The quartile is the quietest
# and sees only what slows most steps; a block's first step, which the other side's turn has made
# slow, is not in it. Totals see every cost. Wall time alone shows waiting: a sleep, a disk, a lock.
LOG_RATIOS: Mapping[Figure, Callable[[Sequence[Block], Sequence[Block]], float]] = {
    "cpu_quartile": _over_blocks(lambda block: lower_quartile(block.cpu_s[1:] or block.cpu_s)),
    "cpu_total": _of_totals(lambda block: block.cpu_s),
    "wall_total": _of_totals(lambda block: block.own_s),
    "wall_median": _over_blocks(lambda block: statistics.median(block.step_s)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Jsonable):
    """Fresh processes of both sides, timed beside each other.

    Attributes:
        order: which side began; within an interleaved pair it alternates from there on.
        device: on a GPU the host's CPU time says nothing of a step.
        reference, candidate: blocks in the order measured, the n-th of one beside the n-th of the
            other; one each where whole processes alternate.
        stolen_share: processors' time that the hypervisor took meanwhile, in cores.
        foreign_cores: processors that others kept busy meanwhile.
        disturbances: what of that its wall time cannot be corrected for, and what else its
            processes or their GPU met, one line each.
    """

    method: Method
    order: Order
    device: Literal["cpu", "cuda"]
    reference: tuple[Block, ...]
    candidate: tuple[Block, ...]
    stolen_share: float
    foreign_cores: float
    disturbances: tuple[str, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The metrics that this pair can be judged by.

        Whole processes alternate where loader workers or other ranks do a part of the work, whose
        CPU time is not the process' own.
        """
        if self.method == WHOLE:
            return ("wall_total",)
        if self.device == "cuda":
            return ("wall_total", "wall_median")
        return ("cpu_quartile", "cpu_total", "wall_total")

    @property
    def discarded(self) -> tuple[Figure, ...]:
        """The metrics that a disturbed pair is not judged by, whichever side was slower in it.

        Neighbours scatter wall time by a multiple and CPU time by little, so that CPU time stands.
        """
        wall = tuple(figure for figure in self.figures if figure.startswith("wall"))
        return wall if self.disturbances else ()

    def log_ratio(self, figure: Figure) -> float:
        """Natural logarithm of candidate over reference, above 0 where the candidate is slower."""
        return LOG_RATIOS[figure](self.reference, self.candidate)
