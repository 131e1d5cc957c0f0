"""What happens where one epoch ends and the next begins, seen on a loader of few batches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from stepbench.training.data import Batches
from stepbench.training.types import Site, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """`pause_s` is from asking for the second epoch's first batch to having it.

    `batches` is what was loaded from: to end its workers can take torch 5 s each, so they are left
    to end with this process.
    """

    batches: Batches
    pause_s: float
    loader_processes: int
    workers_survived: bool


def epoch_boundary(workload: Workload, site: Site) -> Boundary:
    """Load two short epochs under a site's loader; nothing is trained.

    An epoch has a batch for every worker, so that each of them shows itself.
    """
    batches = Batches(
        workload,
        site.plan,
        part=(site.rank, site.replicas),
        batches_an_epoch=max(2, int(site.plan.loader.get("num_workers", 0))),
    )
    first = _loaders(batches)
    began = time.perf_counter()
    next(batches)
    pause_s = time.perf_counter() - began
    second = {batches.loaded_by} | _loaders(batches, already=1)
    first.discard(os.getpid())
    second.discard(os.getpid())
    return Boundary(
        batches=batches,
        pause_s=pause_s,
        loader_processes=len(first),
        workers_survived=bool(first) and first == second,
    )


def _loaders(batches: Batches, already: int = 0) -> set[int]:
    """Read on to the end of the epoch; the processes that loaded it."""
    seen = set()
    for _ in range(batches.epoch_batches - already):
        next(batches)
        seen.add(batches.loaded_by)
    return seen
