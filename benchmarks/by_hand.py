"""What does the harness itself cost? Its step beside the same loop written by hand, side by side.

Not for ASV: `make overhead` prints the ratio with its interval, and what a process costs beyond its
own steps. Exit code 1 where the interval leaves ±1%, or on a CPU the cost exceeds 0.5 s: on a GPU
it holds the device's own start and the larger model's, which no harness can avoid.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from harness.core import Case
from harness.judging.pairs import alternate
from harness.machine import device_type, summary
from harness.measuring.launch import in_child
from harness.measuring.probes import timing
from harness.measuring.settings import Settings
from harness.measuring.sweep import claimed_machine, measure_once, open_sweep
from harness.selfcheck.plain_loop import plain_step
from harness.stats import Estimate, estimate
from harness.training.build import build
from harness.training.data import Batches
from harness.training.step import train_step
from harness.training.techniques import parse
from harness.training.workloads import default, load
from harness.verdicts import Block

STEPS = 8
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
    """The median step of one block over that of another beside it, in seconds over seconds."""

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
    return statistics.median(new.step_s) / statistics.median(old.step_s)


def costs_s(workload: str) -> list[float]:
    """Seconds of each process of some cases beyond the optimizer steps it ran."""
    with TemporaryDirectory() as folder:
        file = open_sweep(Path(folder), Settings(), project=Path(folder))
        records = [
            measure_once(file, Case(workload=workload, combination=parse(name))) for name in CASES
        ]
    processes = [side for one in records for r in one.rounds for side in (r.case, r.baseline)]
    return [process.overhead_s for process in processes]


def right(ratio: Estimate, costs: list[float], device_name: str) -> bool:
    """Whether the harness is as cheap as it claims to be."""
    equal = ratio.low >= 0.99 and ratio.high <= 1.01
    return equal and (device_name != "cpu" or max(costs) <= 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload")
    parser.add_argument("--pairs", type=int, default=60)
    asked = parser.parse_args()
    machine = claimed_machine()
    workload = asked.workload or default(machine)
    ended = in_child(ratios, workload, device_type(machine), asked.pairs, deadline_s=1800)
    if ended.death:
        print(ended.death, file=sys.stderr)
        return 1
    ratio = estimate(ended.answer)
    costs = costs_s(workload)
    print(f"{workload} on {summary(machine)}, torch {torch.__version__}")
    print(
        f"step by the harness / by hand: {ratio.median:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] "
        f"(median of {ratio.rounds} ping-pong pairs, 95% interval)"
    )
    print(
        f"a process beyond its own steps: {statistics.median(costs):.2f} s, "
        f"at most {max(costs):.2f} s ({len(costs)} processes)"
    )
    return 0 if right(ratio, costs, device_type(machine)) else 1


if __name__ == "__main__":
    sys.exit(main())
