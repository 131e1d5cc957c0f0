"""Checks that measure real cases: techniques, the harness' own peak, and running out of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stepbench.measuring.measure import Stopped, measure, measure_process, why_not
from stepbench.measuring.probes.memory import memory_probe
from stepbench.measuring.settings import Settings
from stepbench.measuring.team import default_ranks
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.selfcheck.checking import Check, DoesNotWork, Machine, NotHere, device_of
from stepbench.selfcheck.plain_loop import plain_step
from stepbench.stats.measures import parity_difference, step_s
from stepbench.training.techniques import parse, plan_of
from stepbench.training.workloads import load

# A process that hangs is killed early enough for the check to tell where it stood.
PROCESSES = 2.4
PEAK_TOLERANCE = 0.01
WARM_STEPS = 3


def trains(combination: str, tries: str, deadline_s: float = 60.0) -> Check:
    """A whole measured case beside its baseline, its technique proved and its loss judged."""

    def run(machine: Machine) -> str:
        record = measure(_case(combination, machine), _settings(deadline_s), machine)
        outcome = record.outcome
        if outcome.kind == "unsupported":
            raise NotHere(outcome.reason)
        if not outcome.ok:
            raise DoesNotWork(str(outcome), outcome.traceback)
        [one] = record.rounds
        return (
            f"{1e3 * step_s(one.case):.3g} ms a step, its baseline {1e3 * step_s(one.baseline):.3g}"
            f" ms; loss differs by {parity_difference(one.baseline, one.case):.1e}"
        )

    return Check(
        name=combination,
        tries=tries,
        run=run,
        not_here=lambda machine: why_not(
            _case(combination, machine), _settings(deadline_s), machine
        ),
        deadline_s=deadline_s,
    )


def runs_out_of_memory(phase: str) -> Callable[[Machine], str]:
    """Whether a case whose allocator fails in a phase ends as `oom` in that phase."""

    def run(machine: Machine) -> str:
        case = Case(workload=f"stepbench.selfcheck.greedy:workload@phase={phase}")
        try:
            measure_process(case, _settings(60.0), machine)
        except Stopped as stopped:
            outcome = stopped.outcome
        else:
            raise DoesNotWork("a case that asked for 1 PiB gave a number")
        if (outcome.kind, outcome.phase) != ("oom", phase):
            raise DoesNotWork(f"it must be oom in {phase}; it was {outcome}", outcome.traceback)
        return str(outcome)

    return run


def peak_of_a_plain_loop(machine: Machine) -> str:
    """Whether a case's peak is that of the same loop written by hand, on CUDA by torch's figure."""
    # On a GPU large enough for tensors to outweigh cuBLAS' workspace.
    name = "gpt-10m" if device_type(machine) == "cuda" else "gpt-1m"
    try:
        measured = measure_process(Case(workload=name), _settings(60.0), machine)
    except Stopped as stopped:
        raise DoesNotWork(str(stopped.outcome), stopped.outcome.traceback) from None
    device = device_of(machine)
    probe = memory_probe(device)  # on a CPU before any tensor is made; nothing is forked from here
    step = plain_step(load(name), device)
    for _ in range(WARM_STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        by_hand = torch.cuda.max_memory_allocated()
    else:
        by_hand = probe.watch(step)[1].allocated_bytes
    by_harness = measured.memory.steady_step.allocated_bytes
    told = f"{by_harness:,} bytes in a case of {name}, {by_hand:,} in a plain loop"
    if abs(by_harness - by_hand) > PEAK_TOLERANCE * by_hand:
        raise DoesNotWork(f"{told}: more than {PEAK_TOLERANCE:.0%} apart")
    return told


def _case(combination: str, machine: Machine) -> Case:
    chosen = parse(combination)
    ranks = default_ranks(machine) if plan_of(chosen).distributed else 1
    return Case(workload="gpt-tiny", combination=chosen, ranks=ranks)


def _settings(deadline_s: float) -> Settings:
    """Steps enough for a window of which reading two clocks is less than 1%."""
    return Settings(
        rounds=1, extra_rounds=0, max_steps=20, min_steps=20, deadline_s=deadline_s / PROCESSES
    )
