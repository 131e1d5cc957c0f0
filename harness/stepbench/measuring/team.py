"""Who runs a case's ranks: children of this process, or one child of each of torchrun's processes.

Under torchrun every process of `stepbench run` is a launcher that runs no operator itself: rank 0
decides what is measured, posts it at torchrun's store, and all of them fork a fresh process for it,
so rounds beside the baseline work over hosts as they do on one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, TCPStore

from stepbench.errors import StepbenchError
from stepbench.measuring.caches import cold_caches
from stepbench.measuring.lock import GPUS, VISIBLE, hold_gpus
from stepbench.measuring.preload import preload
from stepbench.measuring.probes.device import INTERVAL_S, DeviceSampler
from stepbench.measuring.process import Ended, Task, in_children
from stepbench.measuring.ranks import Place
from stepbench.measuring.repeat import repeat_case
from stepbench.measuring.settings import Settings
from stepbench.measuring.window_plan import WindowPlan
from stepbench.measuring.worker import measure_case
from stepbench.records.case import Case
from stepbench.records.evidence import Evidence
from stepbench.records.machine import device_type
from stepbench.training.techniques import imports, plan_of
from stepbench.training.techniques.threads import THREADS

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


def devices_here(ranks: int) -> int:
    """How many of a case's ranks this host runs."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else ranks


def launcher() -> str | None:
    """By what the ranks of a run are launched, where it is not by this process alone."""
    if not under_torchrun():
        return None
    return f"torchrun, {os.environ['WORLD_SIZE']} processes on {os.environ['GROUP_WORLD_SIZE']}"


def require_ranks(cases: Iterable[Case]) -> None:
    """StepbenchError unless torchrun started as many processes as the cases have ranks."""
    if not under_torchrun():
        return
    started = int(os.environ["WORLD_SIZE"])
    for case in cases:
        if plan_of(case.combination).distributed and case.ranks != started:
            raise StepbenchError(
                f"torchrun started {started} processes; leave the number out, or start as many",
                argument=f"ranks {case.ranks}",
            )


def too_few_devices(case: Case, machine: Mapping[str, Any]) -> str | None:
    """Why there are not enough GPUs for the case's ranks, or None."""
    held, needed = len(machine["gpus"]), devices_here(case.ranks)
    if device_type(machine) == "cpu" or case.ranks == 1 or needed <= held:
        return None
    return (
        f"{needed} ranks need as many GPUs; this sweep holds {held} (under asv it is {GPUS} that "
        "says how many)"
    )


def too_few_cores(case: Case, settings: Settings, machine: Mapping[str, Any]) -> str | None:
    """Why there are not enough cores on a CPU for ranks of several threads each, or None."""
    ranks, threads = devices_here(case.ranks), settings.threads_of(case)
    held = machine["cores"]
    if device_type(machine) != "cpu" or threads == 1 or ranks * threads <= held:
        return None
    return f"{ranks} ranks of {threads} threads need {ranks * threads} cores; there are {held}"


def require_threads(threads: int, machine: Mapping[str, Any], names: Iterable[str]) -> None:
    """StepbenchError unless each rank's operators can run on so many threads here.

    `names` are the combinations and choices that a person asked for.
    """
    if threads == 1:
        return
    if device_type(machine) != "cpu":
        raise StepbenchError(
            "it is for a CPU, and here operators run on the GPU; leave it out",
            argument=f"threads {threads}",
        )
    if not 1 <= threads <= machine["cores"]:
        raise StepbenchError(
            f"there are {machine['cores']} cores; choose from 1 to {machine['cores']}",
            argument=f"threads {threads}",
        )
    if THREADS.baseline in re.split("[+,]", "+".join(names)):
        raise StepbenchError(
            f"{THREADS.baseline} is the baseline, which runs on {threads} threads then; leave the "
            f"number out, and choose threads{threads}",
            argument=f"threads {threads}",
        )


def crowded(case: Case, environment: Mapping[str, Any]) -> str | None:
    """What the number of a case with more ranks than processors does not mean, or None."""
    cores = len(os.sched_getaffinity(0))
    if environment["device"] != "cpu" or devices_here(case.ranks) <= cores:
        return None
    return f"{case.ranks} ranks shared {cores} processors: as many devices would be faster"


def run_ranks(
    case: Case,
    settings: Settings,
    plan: WindowPlan,
    device: str,
    repeated: Evidence | None = None,
) -> list[Ended]:
    """How each rank's fresh process ended, in order of rank.

    They measure the case, or run the steps again of which `repeated` is the evidence.
    """
    together = plan_of(case.combination).distributed
    ranks = case.ranks if together else 1
    if under_torchrun():
        return _elastic().lead(case, settings, plan, device, ranks, together, repeated)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "meeting") if together else None
        places = [Place(rank=r, ranks=ranks, device=r, file=file) for r in range(ranks)]
        return _fork(case, settings, plan, device, places, repeated)


def _fork(
    case: Case,
    settings: Settings,
    plan: WindowPlan,
    device: str,
    places: Sequence[Place],
    repeated: Evidence | None,
) -> list[Ended]:
    """A fresh process for each place, and the state of its GPU meanwhile beside its answer."""
    preload(imports(case.combination))
    told = (case.to_json(), settings, plan, device)
    tasks: list[Task] = [
        (repeat_case, *told, one.to_json(), repeated)
        if repeated
        else (measure_case, *told, one.to_json())
        for one in places
    ]
    samplers = [DeviceSampler(one.device) for one in places] if device == "cuda" else []

    def sample() -> None:
        for sampler in samplers:
            sampler.sample()

    with cold_caches():
        ended = in_children(
            tasks,
            deadline_s=settings.deadline_s,
            bad=lambda told: "outcome" in told,
            meanwhile=sample,
            every_s=INTERVAL_S,
        )
    for sampler, one in zip(samplers, ended, strict=False):
        if one.answer and "window_at" in one.answer:
            began_s, ended_s = one.answer["window_at"]
            state = sampler.between(began_s, ended_s, own=[one.answer["process"]])
            one.answer["device"] = state.to_json() if state else None
    return ended


def follow() -> int:
    """Fork what torchrun's rank 0 posts, until it says that it is done: its exit code.

    Agents on other hosts would wait minutes for a process that ends as the only one.
    """
    # Waiting for a store is no Python: a handler would never run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _elastic().follow()


def dismiss(exit_code: int) -> None:
    """Have torchrun's other processes end as this one will; nothing to do without torchrun."""
    if under_torchrun():
        _elastic().post({"exit_code": exit_code})


@cache
def _elastic() -> _Elastic:
    return _Elastic(os.environ)


class _Elastic:
    """One of torchrun's processes, by the environment that it gave them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.rank, self.host_index = int(environ["RANK"]), int(environ["GROUP_RANK"])
        self.device, self.ranks_here = int(environ["LOCAL_RANK"]), devices_here(1)
        self.host, self.port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        # A restart of torchrun's meets at the same store: what was posted before is not its own.
        self.prefix = f"stepbench/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = PrefixStore(
            self.prefix,
            TCPStore(self.host, self.port, is_master=False, timeout=timedelta(minutes=5)),
        )
        self.posted = 0

    def lead(
        self,
        case: Case,
        settings: Settings,
        plan: WindowPlan,
        device: str,
        ranks: int,
        together: bool,
        repeated: Evidence | None,
    ) -> list[Ended]:
        """Post the case, run rank 0's part of it, and gather how all ended."""
        self._share_gpus()
        place = Place(ranks=ranks, host=self.host if together else None, port=self.port)
        task = {
            "case": case.to_json(),
            "settings": settings.to_json(),
            "plan": plan.to_json(),
            "device": device,
            "place": place.to_json(),
            "repeated": repeated.to_json() if repeated else None,
        }
        at = self.post(task)
        others = range(1, ranks if together else 1)
        own = self._run(task, at)
        limit = timedelta(seconds=settings.deadline_s + TRAVEL_S)
        keys = [f"answer/{at}/{rank}" for rank in others]
        self.store.wait(keys, limit)
        return [own, *(Ended.from_json(json.loads(self.store.get(key))) for key in keys)]

    def follow(self) -> int:
        """Run this rank's part of each case that takes one."""
        self._share_gpus()
        at = -1
        while True:
            at += 1
            self.store.wait([f"task/{at}"], FOR_EVER)
            task = json.loads(self.store.get(f"task/{at}"))
            if "exit_code" in task:
                return int(task["exit_code"])
            if self.rank < task["place"]["ranks"]:
                ended = self._run(task, at).to_json()
                self.store.set(f"answer/{at}/{self.rank}", json.dumps(ended))

    def _share_gpus(self) -> None:
        """Let the first process of each host hold its GPUs, and the others there see the same."""
        key = f"gpus/{self.host_index}"
        if self.device == 0:
            if torch.version.cuda:
                hold_gpus(self.ranks_here)
            self.store.set(key, os.environ.get(VISIBLE, ""))
        elif visible := self.store.get(key).decode():
            os.environ[VISIBLE] = visible

    def post(self, task: dict[str, Any]) -> int:
        """Post a task, or the end; its number."""
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
        return _fork(
            Case.from_json(task["case"]),
            Settings.from_json(task["settings"]),
            WindowPlan.from_json(task["plan"]),
            task["device"],
            [Place.from_json(place)],
            Evidence.from_json(task["repeated"]) if task["repeated"] else None,
        )[0]
