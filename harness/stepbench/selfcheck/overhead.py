"""What does the harness itself cost, and is the cost that it shows the true one?

`stepbench selfcheck overhead`. The same training step runs as a loop written by hand and by the
harness, in turn in one process: the ratio of total times. Of two workloads whose steps do not cost
alike, the step that is shown is held against the time of a plain loop on the same batches, whole
processes in turn, without what others took of the processor where that is known. And what does a
process cost beyond the steps it ran?
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stepbench.errors import StepbenchError
from stepbench.measuring.measure import measure_process
from stepbench.measuring.pairs import alternate
from stepbench.measuring.probes import timing
from stepbench.measuring.probes.run_delay import RunDelay
from stepbench.measuring.process import in_child
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import claimed_machine, measure_once, open_sweep
from stepbench.measuring.window_plan import PARITY_STEPS, WindowPlan
from stepbench.records.case import Case
from stepbench.records.machine import device_type, summary
from stepbench.records.pair import Block
from stepbench.selfcheck.plain_loop import plain_step
from stepbench.stats.measures import Estimate, estimate, step_s, undelayed_step_s
from stepbench.stats.noise import first_begins
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import parse
from stepbench.training.workloads import default, load

STEPS = 8
UNEVEN = ("stepbench.selfcheck.uneven:periodic", "stepbench.selfcheck.uneven:texts")
# Of the optimizer's ten steps four periods.
UNEVEN_WINDOW = WindowPlan(
    first_batch=PARITY_STEPS + 5, warmup_steps=5, least_steps=40, most_steps=40, agreed=True
)
CASES = ("baseline", "bf16", "accum4", "ckpt1", "bf16+accum4+ckpt2")


def ratios(workload_name: str, device_name: str, pairs: int) -> list[float]:
    """The harness' step over the one by hand, a ratio a pair; run in a fresh process."""
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    workload = load(workload_name)
    loop, site = build(workload, parse("baseline"), device)
    batches = Batches(workload, site.plan)
    by_hand = plain_step(workload, device)

    def by_harness() -> None:
        train_step(loop, next(batches), site)

    for _ in range(5):
        by_harness()
        by_hand()
    return [
        _ratio(by_harness, by_hand, device, candidate_first=bool(pair % 2)) for pair in range(pairs)
    ]


def _ratio(
    candidate: Callable[[], None],
    reference: Callable[[], None],
    device: torch.device,
    *,
    candidate_first: bool,
) -> float:
    """One block's time over that of another beside it, on the same batches."""

    def block(step: Callable[[], None]) -> Block:
        step()
        window = timing.time_steps(step, STEPS, device)
        return Block(step_s=window.step_s, cpu_s=window.cpu_s)

    (old,), (new,) = alternate(
        lambda: block(reference),
        lambda: block(candidate),
        blocks=1,
        begins="candidate first" if candidate_first else "reference first",
    )
    return sum(new.step_s) / sum(old.step_s)


def shown_ratio(workload: str, machine: Mapping[str, Any], rounds: int) -> Estimate:
    """The step that the harness shows over that of a plain loop, fresh processes in turn."""
    plan, ratios = UNEVEN_WINDOW, []
    sides = (_shown_s, _plain_s)
    for index in range(rounds):
        in_turn = sides if first_begins(index) else sides[::-1]
        seconds = {side: side(workload, machine, plan) for side in in_turn}
        ratios.append(seconds[_shown_s] / seconds[_plain_s])
        plan = replace(plan, first_batch=plan.first_batch + plan.most_steps)
    return estimate(ratios)


def _shown_s(workload: str, machine: Mapping[str, Any], plan: WindowPlan) -> float:
    one = measure_process(Case(workload=workload), Settings(), machine, plan)
    return undelayed_step_s(one) or step_s(one)


def _plain_s(workload: str, machine: Mapping[str, Any], plan: WindowPlan) -> float:
    ended = in_child(plain_s, workload, device_type(machine), plan, deadline_s=600)
    if ended.death:
        raise StepbenchError(f"{workload} by hand: {ended.death}")
    return float(ended.answer)


def plain_s(workload_name: str, device_name: str, plan: WindowPlan) -> float:
    """Seconds of a step of a plain loop over the batches of a window, all time over all steps.

    Without what others took of the processor, where the kernel tells it: as on the other side.
    """
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    skipped = range(PARITY_STEPS, plan.first_batch - plan.warmup_steps)
    step = plain_step(load(workload_name), device, left_out=skipped)
    for _ in range(PARITY_STEPS + plan.warmup_steps):
        step()
    timing.synchronize(device)
    delay = RunDelay()
    began, waited_ns = time.perf_counter(), delay.read_ns() or 0
    for _ in range(plan.most_steps):
        step()
    timing.synchronize(device)
    seconds = time.perf_counter() - began
    if device.type == "cpu":
        seconds -= ((delay.read_ns() or 0) - waited_ns) / 1e9
    return seconds / plan.most_steps


def costs_s(workload: str) -> list[float]:
    """Seconds of each process of some cases beyond the optimizer steps it ran."""
    with TemporaryDirectory() as folder:
        file = open_sweep(Path(folder), Settings(), project=Path(folder))
        records = [
            measure_once(file, Case(workload=workload, combination=parse(name))) for name in CASES
        ]
    processes = [side for one in records for r in one.rounds for side in (r.case, r.baseline)]
    return [process.overhead_s for process in processes]


def right(ratio: Estimate, shown: Sequence[Estimate], costs: list[float], device_name: str) -> bool:
    """Whether the harness is as cheap as it claims to be, and shows the true cost of steps.

    The first ratio's interval lies within 1% and the medians of the others within 5%. On a CPU no
    process costs over 0.5 s more: on a GPU that holds the device's own start and the larger
    model's, which no harness can avoid.
    """
    low, high = ratio.low or 0.0, ratio.high or math.inf  # too few pairs have no interval
    equal = low >= 0.99 and high <= 1.01
    true = all(0.95 <= one.median <= 1.05 for one in shown)
    return equal and true and (device_name != "cpu" or max(costs) <= 0.5)


def check(workload: str | None, pairs: int, rounds: int, tell: Callable[[str], None]) -> bool:
    """Measure and tell all of it, line by line as it is known; whether it is `right`.

    Raises:
        StepbenchError: a process ended without its number.
    """
    machine = claimed_machine()
    workload = workload or default(machine)
    ended = in_child(ratios, workload, device_type(machine), pairs, deadline_s=1800)
    if ended.death:
        raise StepbenchError(f"{workload} beside the loop by hand: {ended.death}")
    ratio = estimate(ended.answer)
    tell(f"{workload} on {summary(machine)}, torch {torch.__version__}")
    tell(f"steps by the harness / by hand: {_told(ratio)} interleaved pairs)")
    shown = []
    for name in UNEVEN:  # each told when it is known: the rest takes minutes
        shown.append(one := shown_ratio(name, machine, rounds))
        tell(f"step shown of {name} / by hand: {_told(one)} pairs of processes)")
    costs = costs_s(workload)
    tell(
        f"a process beyond its own steps: {statistics.median(costs):.2f} s, "
        f"at most {max(costs):.2f} s ({len(costs)} processes)"
    )
    return right(ratio, shown, costs, device_type(machine))


def _told(ratio: Estimate) -> str:
    interval = f" [{ratio.low:.4f}, {ratio.high:.4f}]" if ratio.low and ratio.high else ""
    return f"{ratio.median:.4f}{interval} (median and 95% interval of {ratio.rounds}"
