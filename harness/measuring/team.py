"""Who runs a case's ranks: children of this process, or one child of each of torchrun's processes.

Under torchrun every process of `stepbench run` is a launcher that runs no operator itself: rank 0
decides what is measured, posts it at torchrun's store, and all of them fork a fresh process for it,
so rounds beside the baseline work over hosts as they do on one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore

from harness.core import Case, StepbenchError
from harness.measuring.caches import cold_caches
from harness.measuring.launch import Ended, in_child, in_children
from harness.measuring.preload import preload
from harness.measuring.ranks import Place
from harness.measuring.settings import Settings
from harness.measuring.worker import measure_case
from harness.training.techniques import imports, plan_of

# A launcher's own process has ended by its deadline; its answer then only has to travel.
TRAVEL_S = 30.0
# Torchrun ends every process when the leader has, so followers need no limit of their own.
FOR_EVER = timedelta(days=365)


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def leads() -> bool:
    """Whether this process decides what is measured: alone, or as torchrun's rank 0."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def default_ranks(machine: Mapping[str, Any]) -> int:
    """Ranks of a data-parallel case that nobody gave a number: torchrun's, all GPUs, or 2."""
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return len(machine["gpus"]) or min(2, int(machine["cores"]))


def run_ranks(case: Case, settings: Settings, device: str) -> list[Ended]:
    """How each rank's fresh process ended, in order of rank.

    Raises:
        StepbenchError: torchrun started another number of processes than the case has ranks.
    """
    preload(imports(case.combination))
    together = plan_of(case.combination).distributed
    ranks = case.ranks if together else 1
    if under_torchrun():
        return _elastic().lead(case, settings, device, ranks, together)
    with tempfile.TemporaryDirectory() as folder, cold_caches():
        file = str(Path(folder) / "meeting") if together else None
        places = (Place(rank=r, ranks=ranks, device=r, file=file) for r in range(ranks))
        tasks = [
            (measure_case, case.to_json(), settings, device, place.to_json()) for place in places
        ]
        return in_children(
            tasks, deadline_s=settings.deadline_s, bad=lambda told: "outcome" in told
        )


def follow() -> None:
    """Fork what torchrun's rank 0 posts, until it says that it is done."""
    _elastic().follow()


def dismiss() -> None:
    """Tell torchrun's other processes that nothing follows; nothing to do without torchrun."""
    if under_torchrun():
        _elastic().post(None)


@cache
def _elastic() -> _Elastic:
    return _Elastic(os.environ)


class _Elastic:
    """One of torchrun's processes, by the environment that it gave them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.rank, self.ranks = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        self.device = int(environ["LOCAL_RANK"])
        self.host, self.port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        # A restart of torchrun's meets at the same store: what was posted before is not its own.
        self.prefix = f"stepbench/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = PrefixStore(
            self.prefix,
            TCPStore(self.host, self.port, is_master=False, timeout=timedelta(minutes=5)),
        )
        self.posted = 0

    def lead(
        self, case: Case, settings: Settings, device: str, ranks: int, together: bool
    ) -> list[Ended]:
        """Post the case, run rank 0's part of it, and gather how all ended."""
        if together and ranks != self.ranks:
            raise StepbenchError(
                f"{case}: torchrun started {self.ranks} processes; name that many by --ranks"
            )
        place = Place(ranks=ranks, host=self.host if together else None, port=self.port)
        task = {
            "case": case.to_json(),
            "settings": settings.to_json(),
            "device": device,
            "place": place.to_json(),
        }
        at = self.post(task)
        others = range(1, ranks if together else 1)
        own = self._run(task, at)
        limit = timedelta(seconds=settings.deadline_s + TRAVEL_S)
        keys = [f"answer/{at}/{rank}" for rank in others]
        self.store.wait(keys, limit)
        return [own, *(Ended(**json.loads(self.store.get(key))) for key in keys)]

    def follow(self) -> None:
        """Run this rank's part of each case that takes one."""
        for at in itertools.count():
            self.store.wait([f"task/{at}"], FOR_EVER)
            task = json.loads(self.store.get(f"task/{at}"))
            if task is None:
                return
            if self.rank < task["place"]["ranks"]:
                ended = dataclasses.asdict(self._run(task, at))
                self.store.set(f"answer/{at}/{self.rank}", json.dumps(ended))

    def post(self, task: dict[str, Any] | None) -> int:
        """Post a task, or None for the end; its number."""
        at, self.posted = self.posted, self.posted + 1
        self.store.set(f"task/{at}", json.dumps(task))
        return at

    def _run(self, task: dict[str, Any], at: int) -> Ended:
        place = {
            **task["place"],
            "rank": self.rank,
            "device": self.device,
            "prefix": f"{self.prefix}/group/{at}",
        }
        settings = Settings.from_json(task["settings"])
        preload(imports(Case.from_json(task["case"]).combination))
        with cold_caches():
            return in_child(
                measure_case,
                task["case"],
                settings,
                task["device"],
                place,
                deadline_s=settings.deadline_s,
            )
