"""A case that was built and steps: what every process does with it, whatever for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from stepbench.errors import StepbenchError
from stepbench.measuring.outcomes import outcome_of
from stepbench.measuring.probes import memory
from stepbench.measuring.probes.parity import DRIFT_STEPS, SAME_PARAMETER_STEPS, Parity
from stepbench.measuring.probes.start import Start
from stepbench.measuring.probes.timing import Marks, Window, marked, time_steps
from stepbench.measuring.ranks import Group, Place
from stepbench.measuring.settings import Settings
from stepbench.measuring.sources import wrong_tree
from stepbench.measuring.window_plan import PARITY_STEPS, WindowPlan, first_plan
from stepbench.records.case import Case
from stepbench.records.measurement import Peak
from stepbench.records.outcome import Outcome, Phase
from stepbench.training.build import build
from stepbench.training.data import Batches, HostBatch
from stepbench.training.step import train_step
from stepbench.training.techniques import (
    plan_of,
)
from stepbench.training.types import Loop, Site, Unsupported, Workload
from stepbench.training.workloads import of_case

ALONE = Place()


class Fetched(NamedTuple):
    """A batch that a step took: which, how long the step waited for it, and its loss terms."""

    batch: int
    wait_s: float
    tokens: int


class Subject:
    """One case being measured: what was built, and how many steps it has run."""

    loop: Loop
    site: Site
    batches: Batches
    first: HostBatch
    data_bytes: int  # that the data held in tensors when the first batch was there
    workload: Workload

    def __init__(self, case: Case, device: torch.device, place: Place, threads: int) -> None:
        self.case, self.device, self.place, self.threads = case, device, place, threads
        self.steps_run = 0
        self.fetched: list[Fetched] = []
        self.phase: Phase = "build"

    def join(self, deadline_s: float) -> None:
        """Meet the other ranks, where there are any."""
        offloads = plan_of(self.case.combination).offloads
        self.group = Group(self.place, self.device, deadline_s, host_tensors=offloads)

    def prepare(self) -> None:
        """Build and run the first steps for `block`, without a measurement."""
        probe = memory.memory_probe(self.device)
        plan = first_plan(self.case, Settings())
        self._build()
        self._open_data(plan)
        self._parity(probe)

    def block(self, steps: int) -> Window:
        """Time the next steps.

        Raises:
            StepbenchError: the loss scaler skipped one of them.
        """
        self.phase = "other"
        scale = self.loop.loss_scale()
        window = time_steps(self._step, steps, self.device)
        if self.loop.loss_scale() < scale:
            raise StepbenchError("the loss scaler skipped a timed step")
        return window

    def _build(self) -> None:
        self.workload = of_case(self.case)
        self.loop, self.site = build(
            self.workload,
            self.case.combination,
            self.device,
            ranks=self.case.ranks,
            rank=self.place.rank,
            mesh=self.group.mesh,
        )
        self.marks = Marks(self.device)
        self.marked_loop = marked(self.loop, self.marks)

    def _open_data(self, plan: WindowPlan) -> None:
        self.batches = Batches(
            self.workload,
            self.site.plan,
            part=(self.place.rank, self.site.replicas),
            left_out=range(PARITY_STEPS, plan.first_batch - plan.warmup_steps),
        )

    def _next(self) -> HostBatch:
        self.steps_run += 1
        began = time.perf_counter()
        host = next(self.batches, None)
        if host is None:
            raise StepbenchError(
                f"no batch was left for step {self.steps_run}: an epoch must never end early"
            )
        wait_s = time.perf_counter() - began
        tokens = self.workload.loss_terms(host[1])
        self.fetched.append(Fetched(self.batches.index, wait_s, tokens))
        return host

    def _step(self, loop: Loop | None = None) -> None:
        host = self._next()
        self.marks.mark("data")
        train_step(loop or self.marked_loop, host, self.site)

    def _parity(self, probe: memory.MemoryProbe) -> tuple[Parity, Peak]:
        self.phase = "warm-up"
        parity = Parity()
        start = probe.apart(lambda: Start(self.loop))

        # Kept on the host: memory and counts are of this batch in every process, however long it
        # warmed up. Batches may be of unequal size. Workers are not forked under a profiler, and
        # keep what they load to themselves.
        workers = self.site.plan.loader.get("num_workers", 0)
        self.first = self._next() if workers else probe.apart(self._next)
        self.data_bytes = probe.bytes_in(self.batches.made_by)
        _, first_peak = probe.watch(lambda: parity.observe(self.loop, self.first, self.site))
        for _ in range(SAME_PARAMETER_STEPS - 1):
            start.put_back()
            parity.observe(start.watched(self.loop), self._next(), self.site)
            parity.descents.append(start.descent())
        probe.apart(start.forget)
        for _ in range(DRIFT_STEPS):
            parity.observe(self.loop, self._next(), self.site)
        self.steps_run += parity.skipped
        self._require_even_terms()
        return parity, first_peak

    def _require_even_terms(self) -> None:
        if self.site.replicas == 1 or self.workload.uneven_terms:
            return
        for one in self.fetched:
            most, fewest = self.group.worst(one.tokens), -self.group.worst(-one.tokens)
            if most != fewest:
                raise StepbenchError(
                    f"{self.workload.name}: ranks' batches hold {fewest:g} to {most:g} loss terms "
                    "in one step; say so by Workload(uneven_terms=True)"
                )


Kind = TypeVar("Kind", bound=Subject)


def with_subject(
    kind: type[Kind],
    case_json: dict[str, Any],
    device_type: str,
    work: Callable[[Kind], dict[str, Any]],
    settings: Settings,
    place: Place = ALONE,
) -> dict[str, Any]:
    """What `work` answers about the case's subject, or `{"outcome": …}` where something forbids it.

    This process must be fresh. The subject is of that kind.
    """
    case = Case.from_json(case_json)
    cuda = device_type == "cuda"
    device = torch.device("cuda", place.device) if cuda else torch.device("cpu")
    if reason := wrong_tree(case.workload):
        return {"outcome": Outcome(kind="failed", reason=reason).to_json()}
    threads = 0 if cuda else settings.threads_of(case)
    if not cuda:
        _set_threads(threads)
    elif torch.cuda._is_in_bad_fork():
        reason = "importing the workload started CUDA; touch devices inside its functions only"
        return {"outcome": Outcome(kind="failed", reason=reason).to_json()}
    else:
        torch.cuda.set_device(device)
    subject = kind(case, device, place, threads)
    try:
        subject.join(settings.deadline_s)
        return work(subject)
    except Unsupported as error:
        return {"outcome": Outcome(kind="unsupported", reason=str(error)).to_json()}
    except StepbenchError as error:
        return {"outcome": Outcome(kind="failed", reason=str(error)).to_json()}
    except Exception as error:
        return {"outcome": outcome_of(error, subject.phase).to_json()}


def _set_threads(number: int) -> None:
    """Before the first operator; libraries that are still to be loaded read the environment."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(number)
    torch.set_num_threads(number)
