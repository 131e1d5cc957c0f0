"""What one fresh process does with one case: build, parity, warm-up, window, memory, counters."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from stepbench.measuring.environment import environment
from stepbench.measuring.probes import counters, growth, memory, resident
from stepbench.measuring.probes.communication import STEPS as WATCHED_STEPS
from stepbench.measuring.probes.communication import watched_steps
from stepbench.measuring.probes.compilation import calls, compilation
from stepbench.measuring.probes.device import Clock
from stepbench.measuring.probes.elements import elements
from stepbench.measuring.probes.loading import Boundary, epoch_boundary
from stepbench.measuring.probes.modules import Modules, narrow_under_autocast, watched
from stepbench.measuring.probes.parity import SAME_PARAMETER_STEPS
from stepbench.measuring.probes.surroundings import HostLoad
from stepbench.measuring.probes.threads import ran_threads
from stepbench.measuring.probes.timed import Timed
from stepbench.measuring.probes.timing import Window, marked
from stepbench.measuring.ranks import Place
from stepbench.measuring.settings import Settings
from stepbench.measuring.subject import Subject, with_subject
from stepbench.measuring.window import Warm, time_window, warm_up
from stepbench.measuring.window_plan import WindowPlan
from stepbench.records.measurement import Communication, Counters, Measurement, Memory, Peak
from stepbench.stats.noise import tolerated_cores
from stepbench.training.step import train_step
from stepbench.training.techniques import (
    chosen_techniques,
    inside_the_model,
    tolerance,
)
from stepbench.training.techniques.attention import ATTENTION
from stepbench.training.types import Loop

# A window with a skipped step is timed again so often.
WINDOW_TRIES = 3


def measure_case(
    case_json: dict[str, Any],
    settings: Settings,
    plan: WindowPlan,
    device_type: str,
    place_json: dict[str, Any],
) -> dict[str, Any]:
    """Measure one case in this process, which must be fresh, as one rank of its group.

    Returns:
        `{"measurement": …}`, to which `"objection"` adds why the number would be wrong, and
        `"window_at"` and `"process"` when (`time.monotonic()`) and where the window was; or
        `{"outcome": …}` where there is no number.
    """

    def work(subject: Measured) -> dict[str, Any]:
        measurement, objection = subject.measure(settings, plan)
        return {
            "measurement": measurement.to_json(),
            "objection": objection,
            "window_at": subject.window_at,
            "process": os.getpid(),
        }

    place = Place.from_json(place_json)
    return with_subject(Measured, case_json, device_type, work, settings, place)


class Measured(Subject):
    """One case being measured."""

    boundary: Boundary
    window_at: tuple[float, float]
    warmup_steps: int
    timed: Timed
    modules: Modules
    allocation_retries: int

    def measure(self, settings: Settings, plan: WindowPlan) -> tuple[Measurement, str | None]:
        """The measurement, and why it would be wrong to believe it (or None)."""
        probe = memory.memory_probe(self.device)
        began, at_first = time.perf_counter(), resident.anonymous_bytes()
        _, build_peak = probe.watch(self._build)
        built = resident.anonymous_bytes()
        probe.apart(lambda: self._open_data(plan))
        own = at_first + resident.anonymous_bytes() - built  # with the data, as in the other peaks
        build_s = time.perf_counter() - began
        parity, first_peak = self._parity(probe)
        held_before = growth.held(probe, self.steps_run)
        warm = self._warm_up(plan)
        window, disturbances, wrong_window = self._time(plan, settings.window_s, warm)
        evidence = self.timed.evidence()
        compiled, host_bytes, fetched = compilation(), memory.host_bytes(), self.fetched
        held_after = growth.held(probe, self.steps_run)
        # What it has cached of the batches since is no matter of the subject's, as at first.
        kept = probe.bytes_in(self.batches.made_by) - self.data_bytes
        probe.leave_out(kept)
        process_peak = self._process_peak(own + kept, held_before, held_after)
        steady_peak, categories = self._steady_memory(probe)
        pause_s, counted = self._count()
        rates = [*zip(*parity.learning_rates, strict=True)]  # of each parameter group
        counted = dataclasses.replace(
            counted,
            learning_rates=next(iter(rates), ()),
            other_learning_rates=tuple(rates[1:]),
        )
        # A rank's shards may all be empty.
        changed = int(self.group.worst(evidence.changed))
        evidence = dataclasses.replace(evidence, **self._seen(), changed=changed)
        communication = self._communication()
        grown = self._growth(probe, held_before, held_after)
        self.group.worst(0.0)  # none leaves while another still needs it
        measurement = Measurement(
            **dataclasses.asdict(window),
            batches=tuple(one.batch for one in fetched),
            tokens=round(statistics.fmean(one.tokens for one in fetched)),
            step_tokens=tuple(one.tokens for one in fetched),
            build_s=build_s,
            warmup_steps=self.warmup_steps,
            steady=warm.steady,
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
                process_peak_bytes=process_peak,
                **categories,
            ),
            counters=counted,
            environment=environment(self.case, self.loop, self.site, self.group),
            disturbances=disturbances,
            data_wait_s=tuple(one.wait_s for one in fetched),
            epoch_pause_s=pause_s,
            host_bytes=host_bytes,
            growth_bytes_per_step=grown,
            communication=communication,
            allocation_retries=self.allocation_retries,
            compilation=compiled,
            unproved=inside_the_model(self.case.combination) if counted.compiled_calls else (),
            evidence=evidence,
        )
        proofs = (
            f"{technique.name} was not active: {reason}"
            for technique in chosen_techniques(self.case.combination)
            if (reason := technique.proof(counted, self.site.plan))
        )
        still = None if counted.parameters_changed else "the update changed no parameter"
        objections = (parity.objection(), wrong_window, evidence.objection(), still, *proofs)
        return measurement, next(filter(None, objections), None)

    def _warm_up(self, plan: WindowPlan) -> Warm:
        clock = Clock(self.place.device) if self.device.type == "cuda" else None
        ahead = int(self.group.worst(self.batches.most_ahead))
        return warm_up(self._step, plan, self.group, clock, ahead=ahead)

    def _time(
        self, plan: WindowPlan, window_s: float, warm: Warm
    ) -> tuple[Window, tuple[str, ...], str | None]:
        """A right window, what disturbed it, and an objection if none was had.

        It is right where no step was skipped and all ranks' marks agree with their windows.
        """
        self.phase = "other"
        fitting = max(plan.least_steps, int(window_s / warm.fastest_s))
        steps = plan.most_steps if plan.agreed else min(plan.most_steps, fitting)
        workers = self.site.plan.loader.get("num_workers", 0)
        processes = self.group.host_processes
        tolerated = tolerated_cores(len(processes) * (max(1, self.threads) + workers))
        for _ in range(WINDOW_TRIES):
            self.fetched.clear()
            self.warmup_steps = self.steps_run
            self.timed = Timed(self.loop, begins=self.steps_run)
            loop = marked(self.timed.loop, self.marks)
            scale, load_before = self.loop.loss_scale(), HostLoad.read(processes)
            retries = self._allocation_retries()
            self.group.worst(0.0)  # all begin together
            began_s = time.monotonic()
            window, samples = time_window(
                partial(self._step, loop),
                steps,
                self.group,
                marks=self.marks,
                marks_a_step=3 + 3 * self.site.plan.micro_batches,
            )
            self.window_at = (began_s, time.monotonic())
            self.allocation_retries = self._allocation_retries() - retries
            # Of several threads, processes or workers, each may have waited for another of them.
            alone = (self.threads, workers, len(processes)) == (1, 0, 1)
            delay_s = sum(window.delay_s) if alone else 0.0
            disturbances = load_before.disturbances(HostLoad.read(processes), tolerated, delay_s)
            wrong = window.objection()
            if self.loop.loss_scale() < scale:
                wrong = f"the loss scaler skipped a timed step {WINDOW_TRIES} times"
            if not self.group.worst(bool(wrong)):
                break
        if len(samples) < steps:
            compiled = len(window.step_s) - len(samples)
            wrong = f"{compiled} of {len(window.step_s)} timed steps were compiled"
        elif not wrong:
            window = window.of(samples)
            self.fetched = [self.fetched[step] for step in samples]
        return window, disturbances, wrong

    def _allocation_retries(self) -> int:
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.memory_stats(self.device)["num_alloc_retries"])

    def _process_peak(self, own: int, *around: growth.Held) -> int | None:
        """The most that the process holds in a step beyond `own` bytes.

        None on a device, and where it has kept more since the first steps that is no tensor: the
        data's cache, which nobody can tell from what the subject keeps.
        """
        if self.device.type != "cpu" or growth.beside_tensors(*around) > growth.BESIDE_BYTES:
            return None
        self.steps_run += 1
        most = resident.anonymous_peak_bytes(lambda: train_step(self.loop, self.first, self.site))
        return None if most is None else max(0, most - own)

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
            with torch.compiler.set_stance("force_eager"), watched(loop.model) as self.modules:
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
        )
        # Each rank sees its shard and its micro-batches only.
        changed = bool(self.group.worst(counted.parameters_changed))
        shares = self.group.mean(counted.shares)
        return boundary.pause_s, dataclasses.replace(
            counted,
            shares=shares,
            parameters_changed=changed,
            **elements(self.loop, self.device),
        )

    def _seen(self) -> dict[str, Any]:
        """The fields of Evidence about single modules."""
        narrow: tuple[str, ...] = ()
        if self.case == self.case.baseline:
            narrow = narrow_under_autocast(self.loop, self.first, self.site)
        kernel_chosen = ATTENTION.name in self.case.combination.techniques
        return {**self.modules.fields(kernel_chosen=kernel_chosen), "narrow_modules": narrow}

    def _compiled_calls(self) -> dict[str, int]:
        if compilation() is None:
            return {}
        self.steps_run += 2
        return calls(self.loop, lambda loop: train_step(loop, self.first, self.site))

    def _communication(self) -> Communication | None:
        """How much of a step's collectives nothing hid; None where there is no group."""
        if self.group.mesh is None:
            return None
        self.steps_run += WATCHED_STEPS + 1
        return watched_steps(
            self.loop, lambda loop: train_step(loop, self.first, self.site), self.device
        )
