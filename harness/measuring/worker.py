"""What one fresh process does with one case: build, parity, warm-up, window, memory, counters."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from harness.core import Case, Outcome, Phase, StepbenchError
from harness.measuring.environment import environment
from harness.measuring.outcomes import outcome_of
from harness.measuring.probes import counters, growth, memory
from harness.measuring.probes.communication import STEPS as WATCHED_STEPS
from harness.measuring.probes.communication import watched_steps
from harness.measuring.probes.compilation import calls, compilation
from harness.measuring.probes.elements import elements
from harness.measuring.probes.loading import Boundary, epoch_boundary
from harness.measuring.probes.parity import DRIFT_STEPS, SAME_PARAMETER_STEPS, Parity
from harness.measuring.probes.start import Start
from harness.measuring.probes.surroundings import HostLoad, tolerated_cores
from harness.measuring.probes.threads import ran_threads
from harness.measuring.probes.timing import Marks, Window, marked, synchronize, time_steps
from harness.measuring.ranks import Group, Place
from harness.measuring.settings import Settings
from harness.measuring.sources import wrong_tree
from harness.observed import Communication, Counters, Measurement, Memory, Peak
from harness.training.build import build
from harness.training.data import Batches, HostBatch
from harness.training.step import train_step
from harness.training.techniques import (
    chosen_techniques,
    inside_the_model,
    plan_of,
    tolerance,
)
from harness.training.types import Loop, Site, Unsupported, Workload
from harness.training.workloads import of_case

WARMUP_FLOOR, WARMUP_CAP = 2, 10
# A step this much over the fastest so far is still warming up.
STEADY = 1.1
ALONE = Place()
# A window with a skipped step is timed again so often.
WINDOW_TRIES = 3


def measure_case(
    case_json: dict[str, Any], settings: Settings, device_type: str, place_json: dict[str, Any]
) -> dict[str, Any]:
    """Measure one case in this process, which must be fresh, as one rank of its group.

    Returns:
        `{"measurement": …}`, to which `"objection"` adds why the number would be wrong, and
        `"window_at"` and `"process"` when (`time.monotonic()`) and where the window was; or
        `{"outcome": …}` where there is no number.
    """

    def work(subject: Subject) -> dict[str, Any]:
        measurement, objection = subject.measure(settings)
        return {
            "measurement": measurement.to_json(),
            "objection": objection,
            "window_at": subject.window_at,
            "process": os.getpid(),
        }

    place = Place.from_json(place_json)
    return with_subject(case_json, device_type, work, settings, place)


def with_subject(
    case_json: dict[str, Any],
    device_type: str,
    work: Callable[[Subject], dict[str, Any]],
    settings: Settings,
    place: Place = ALONE,
) -> dict[str, Any]:
    """What `work` answers about the case's subject, or `{"outcome": …}` where something forbids it.

    This process must be fresh.
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
    subject = Subject(case, device, place, threads)
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


class Subject:
    """One case being measured: what was built, and how many steps it has run."""

    loop: Loop
    site: Site
    batches: Batches
    first: HostBatch
    workload: Workload
    boundary: Boundary
    window_at: tuple[float, float]
    allocation_retries: int

    def __init__(self, case: Case, device: torch.device, place: Place, threads: int) -> None:
        self.case, self.device, self.place, self.threads = case, device, place, threads
        self.steps_run = 0
        self.tokens: list[int] = []
        self.waits_s: list[float] = []
        self.phase: Phase = "build"

    def join(self, deadline_s: float) -> None:
        """Meet the other ranks, where there are any."""
        offloads = plan_of(self.case.combination).offloads
        self.group = Group(self.place, self.device, deadline_s, host_tensors=offloads)

    def measure(self, settings: Settings) -> tuple[Measurement, str | None]:
        """The measurement, and why it would be wrong to believe it (or None)."""
        probe = memory.memory_probe(self.device)
        began = time.perf_counter()
        _, build_peak = probe.watch(self._build)
        probe.apart(self._open_data)
        build_s = time.perf_counter() - began
        parity, first_peak = self._parity(probe)
        held_before = growth.held(probe, self.steps_run)
        fastest_s = self._warm_up()
        warmup_steps = self.steps_run
        compiled = compilation()
        window, disturbances, wrong_window = self._time(settings, fastest_s)
        if compilation() != compiled:
            wrong_window = "a timed step was compiled"
        waits_s, host_bytes = tuple(self.waits_s), memory.host_bytes()
        held_after = growth.held(probe, self.steps_run)
        tokens = round(statistics.fmean(self.tokens))
        steady_peak, categories = self._steady_memory(probe)
        pause_s, counted = self._count()
        rates = [*zip(*parity.learning_rates, strict=True)]  # of each parameter group
        counted = dataclasses.replace(
            counted,
            learning_rates=next(iter(rates), ()),
            other_learning_rates=tuple(rates[1:]),
        )
        communication = self._communication()
        grown = self._growth(probe, held_before, held_after)
        self.group.worst(0.0)  # none leaves while another still needs it
        measurement = Measurement(
            **dataclasses.asdict(window),
            tokens=tokens,
            build_s=build_s,
            warmup_steps=warmup_steps,
            steps_run=self.steps_run,
            overhead_s=0.0,  # known to the launcher only
            losses=tuple(parity.losses),
            grad_norms=tuple(parity.grad_norms),
            loss_tolerance=tolerance(self.workload, self.case.combination),
            same_parameter_steps=SAME_PARAMETER_STEPS,
            descents=tuple(parity.descents),
            skipped_steps=parity.skipped,
            memory=Memory(
                method=probe.method,
                build=build_peak,
                first_step=first_peak,
                steady_step=steady_peak,
                **categories,
            ),
            counters=counted,
            environment=environment(self.case, self.loop, self.site, self.group),
            disturbances=disturbances,
            data_wait_s=waits_s,
            epoch_pause_s=pause_s,
            host_bytes=host_bytes,
            growth_bytes_per_step=grown,
            communication=communication,
            allocation_retries=self.allocation_retries,
            compilation=compiled,
            unproved=inside_the_model(self.case.combination) if compiled else (),
        )
        proofs = (
            f"{technique.name} was not active: {reason}"
            for technique in chosen_techniques(self.case.combination)
            if (reason := technique.proof(counted, self.site.plan))
        )
        still = None if counted.parameters_changed else "the update changed no parameter"
        objections = (parity.objection(), wrong_window, still, *proofs)
        return measurement, next(filter(None, objections), None)

    def prepare(self) -> None:
        """Build and run the first steps for `block`, without a measurement."""
        probe = memory.memory_probe(self.device)
        self._build()
        self._open_data()
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

    def _open_data(self) -> None:
        self.batches = Batches(
            self.workload, self.site.plan, part=(self.place.rank, self.site.replicas)
        )

    def _next(self) -> HostBatch:
        self.steps_run += 1
        began = time.perf_counter()
        host = next(self.batches, None)
        if host is None:
            raise StepbenchError(
                f"no batch was left for step {self.steps_run}: an epoch must never end early"
            )
        self.waits_s.append(time.perf_counter() - began)
        self.tokens.append(self.workload.loss_terms(host[1]))
        return host

    def _step(self) -> None:
        host = self._next()
        self.marks.mark("data")
        train_step(self.marked_loop, host, self.site)

    def _parity(self, probe: memory.MemoryProbe) -> tuple[Parity, Peak]:
        self.phase = "warm-up"
        parity = Parity()
        start = probe.apart(lambda: Start(self.loop))

        # Kept on the host: memory and counts are of this batch in every process, however long it
        # warmed up. Batches may be of unequal size. Workers are not forked under a profiler, and
        # keep what they load to themselves.
        workers = self.site.plan.loader.get("num_workers", 0)
        self.first = self._next() if workers else probe.apart(self._next)
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
        for terms in self.tokens:
            most, fewest = self.group.worst(terms), -self.group.worst(-terms)
            if most != fewest:
                raise StepbenchError(
                    f"{self.workload.name}: ranks' batches hold {fewest:g} to {most:g} loss terms "
                    "in one step; say so by Workload(uneven_terms=True)"
                )

    def _warm_up(self) -> float:
        """Step until a step is no slower than the fastest so far; that one's seconds.

        What workers loaded ahead during the slow first steps is used up before.
        """
        for _ in range(int(self.group.worst(self.batches.most_ahead))):
            self._step()
        fastest_s = float("inf")
        for index in range(WARMUP_CAP):
            synchronize(self.device)
            began = time.perf_counter()
            self._step()
            synchronize(self.device)
            took_s = self.group.worst(time.perf_counter() - began)
            if index + 1 >= WARMUP_FLOOR and took_s <= STEADY * fastest_s:
                return min(fastest_s, took_s)
            fastest_s = min(fastest_s, took_s)
        return fastest_s

    def _time(
        self, settings: Settings, fastest_s: float
    ) -> tuple[Window, tuple[str, ...], str | None]:
        """A right window, what disturbed it, and an objection if none was had.

        It is right where no step was skipped and all ranks' marks agree with their windows.
        """
        self.phase = "other"
        wanted = int(settings.window_s / fastest_s)
        # Workers deliver in turn: a window holds each of them twice.
        workers = self.site.plan.loader.get("num_workers", 0)
        least = max(settings.min_steps, 2 * workers)
        steps = max(least, min(settings.max_steps, wanted))
        processes = self.group.host_processes
        tolerated = tolerated_cores(len(processes) * (max(1, self.threads) + workers))
        for _ in range(WINDOW_TRIES):
            self.waits_s.clear()
            self.tokens.clear()
            scale, load_before = self.loop.loss_scale(), HostLoad.read(processes)
            retries = self._allocation_retries()
            self.group.worst(0.0)  # all begin together
            began_s = time.monotonic()
            window = time_steps(
                self._step,
                steps,
                self.device,
                marks=self.marks,
                marks_a_step=3 + 3 * self.site.plan.micro_batches,
            )
            self.window_at = (began_s, time.monotonic())
            self.allocation_retries = self._allocation_retries() - retries
            disturbances = load_before.disturbances(HostLoad.read(processes), tolerated)
            wrong = window.objection()
            if self.loop.loss_scale() < scale:
                wrong = f"the loss scaler skipped a timed step {WINDOW_TRIES} times"
            if not self.group.worst(bool(wrong)):
                return window, disturbances, None
        return window, disturbances, wrong

    def _allocation_retries(self) -> int:
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.memory_stats(self.device)["num_alloc_retries"])

    def _steady_memory(self, probe: memory.MemoryProbe) -> tuple[Peak, dict[str, int]]:
        categories: dict[str, int] = {}

        def update() -> None:
            categories.update(memory.categories(self.loop, self.device))
            self.loop.update()

        loop = dataclasses.replace(self.loop, update=update)
        self.steps_run += 1
        _, peak = probe.watch(lambda: train_step(loop, self.first, self.site))
        return peak, categories

    def _growth(self, probe: memory.MemoryProbe, *readings: growth.Held) -> float | None:
        """Bytes that each step adds; the readings are from around the window."""
        on_host = self.device.type == "cpu"
        grown = growth.per_step(readings, on_host=on_host)
        if not self.group.worst(grown or 0.0):
            return grown
        step = partial(train_step, self.loop, self.first, self.site)
        readings = tuple(growth.decided(probe, self.steps_run, step))
        self.steps_run = readings[-1].steps
        return growth.per_step(readings, on_host=on_host)

    def _count(self) -> tuple[float, Counters]:
        """Seconds of the pause between epochs, and what one step did."""
        self.steps_run += 1
        self.boundary = boundary = epoch_boundary(self.workload, self.site)
        compiled = self._compiled_calls()

        def eager_step(loop: Loop) -> None:
            with torch.compiler.set_stance("force_eager"):
                train_step(loop, self.first, self.site)

        counted = counters.count(
            self.loop,
            eager_step,
            **compiled,
            loader_processes=boundary.loader_processes,
            workers_survived=boundary.workers_survived,
            batches_ahead=self.batches.most_ahead,
            epoch_batches=self.batches.epoch_batches,
            ranks=self.case.ranks,
            threads=self.threads,
            ran_threads=ran_threads(self.threads) if self.threads else 0,
            pinned=any(leaf.is_pinned() for leaf in tree_leaves(self.first)),
            **elements(self.loop, self.device),
        )
        # Each rank sees its shard and its micro-batches only.
        changed = bool(self.group.worst(counted.parameters_changed))
        shares = self.group.mean(counted.shares)
        return boundary.pause_s, dataclasses.replace(
            counted, shares=shares, parameters_changed=changed
        )

    def _compiled_calls(self) -> dict[str, int]:
        if compilation() is None:
            return {}
        self.steps_run += 1
        return calls(lambda: train_step(self.loop, self.first, self.site))

    def _communication(self) -> Communication | None:
        """How much of a step's collectives nothing hid; None where there is no group."""
        if self.group.mesh is None:
            return None
        self.steps_run += WATCHED_STEPS + 1
        return watched_steps(
            self.loop, lambda loop: train_step(loop, self.first, self.site), self.device
        )
