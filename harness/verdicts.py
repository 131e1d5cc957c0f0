"""The judge's data: sides, pairs of processes and what they say. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.core import Case, Jsonable

Method = Literal["ping-pong", "whole processes"]
Order = Literal["reference first", "candidate first"]
Figure = Literal["cpu_s", "step_s"]
Summary = Literal["lower quartile", "median", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side(Jsonable):
    """A case in the code of a source tree (a folder); None: the code of this process."""

    case: Case
    tree: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Jsonable):
    """Consecutive steps of one process, raw.

    `step_s`: seconds of each step by its boundary marks (CUDA events on a GPU). `cpu_s`: CPU
    seconds of the process in each, all its threads.
    """

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]


def lower_quartile(values: Sequence[float]) -> float:
    """The 25th percentile, interpolated (`statistics.quantiles`, inclusive); of one value itself.

    A neighbour can only slow a step down, so the faster steps are those that met nobody.
    """
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]


SUMMARIES: Mapping[Summary, Callable[[Sequence[float]], float]] = {
    "lower quartile": lower_quartile,
    "median": statistics.median,
    "mean": statistics.fmean,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Jsonable):
    """Fresh processes of both sides, timed beside each other.

    Attributes:
        order: which side began; within a ping-pong pair it alternates from there on.
        summary: what stands for a block: the lower quartile on a CPU, the median of the events on
            a GPU, the mean where loader workers deliver in bursts.
        reference, candidate: blocks in the order measured, the n-th of one beside the n-th of the
            other; one each where whole processes alternate.
        stolen_share: processors' time that the hypervisor took meanwhile, in cores.
        foreign_cores: processors that others kept busy meanwhile.
        disturbances: what of that counts as disturbed, one line each.
    """

    method: Method
    order: Order
    summary: Summary
    reference: tuple[Block, ...]
    candidate: tuple[Block, ...]
    stolen_share: float
    foreign_cores: float
    disturbances: tuple[str, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What this pair can be judged by.

        On a CPU the process' CPU time, which no neighbour lengthens by taking turns, and wall
        time, which alone shows waiting (a sleep, a disk, a lock). On a GPU the host's CPU time says
        nothing of the device, and with loader workers nothing of theirs.
        """
        return ("cpu_s", "step_s") if self.summary == "lower quartile" else ("step_s",)

    def log_ratio(self, figure: Figure) -> float:
        """Natural logarithm of candidate over reference, above 0 where the candidate is slower.

        The median over the blocks.
        """
        summarised = SUMMARIES[self.summary]
        return statistics.median(
            math.log(summarised(getattr(new, figure)) / summarised(getattr(old, figure)))
            for old, new in zip(self.reference, self.candidate, strict=True)
        )
