"""How often is the gate wrong on this machine? Equal trees and planted slowdowns, measured.

`stepbench selfcheck gate` measures pairs of equal trees with their raw steps, and whole gates of
equal trees and of planted slowdowns, on three workloads, on the machine as it is and beside busy
processes. Quiet is where others kept less than a quarter of a processor busy. It tells how often
the rule was right (`alarm_rates`). Every start's pairs and every gate are added to a file under
results/aa/<machine>/ when they are there, so that the same command goes on after an interruption;
larger numbers add to what there is.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stepbench.errors import StepbenchError
from stepbench.gate.gate import SETTINGS, Session
from stepbench.gate.trees import Project, Tree
from stepbench.measuring.fork_server import PROTOCOL
from stepbench.measuring.pairs import PairedRunner, order_of
from stepbench.measuring.sweep import claimed_machine
from stepbench.records.case import Case
from stepbench.records.pair import INTERLEAVED, Pair, Side
from stepbench.selfcheck.alarm_rates import (
    LEAST_PAIRS,
    SHAPES,
    Condition,
    Shape,
    report,
    rounded,
)
from stepbench.selfcheck.journal import add, opened, read
from stepbench.stats.noise import FOREIGN_CORES
from stepbench.stats.rule import PAIRS_A_START
from stepbench.store import now

# Steps of about 2, 20 and 200 ms on the machine that this was written on.
WORKLOADS = ("gpt-tiny", "cnn-tiny", "gpt-1m@batch=32")
# Whole gates of the last would take a quarter of an hour each.
GATED = WORKLOADS[:2]
PLANTED_PERCENT = 5
CASE = Case(workload="planted:workload")
Tell = Callable[[str], None]
# The cost is a share of the CPU time of the step before: it grows with the step, whatever the
# machine makes of that.
PLANTED = '''
"""A workload whose steps of some indices burn a share of the step before, and do nothing else."""

from dataclasses import replace
from time import process_time_ns

from stepbench.training.workloads import load

PERCENT, PERIOD, HITS = {percent}, {period}, {hits}


class Slowed:
    def __init__(self, call):
        self.call, self.ended_ns, self.steps = call, None, 0

    def __call__(self, model, inputs):
        began_ns = process_time_ns()
        if self.ended_ns is not None and self.steps % PERIOD < HITS:
            until_ns = began_ns + (began_ns - self.ended_ns) * PERCENT * PERIOD // (100 * HITS)
            while process_time_ns() < until_ns:
                pass
        self.steps += 1
        self.ended_ns = process_time_ns()
        return self.call(model, inputs)


def workload():
    plain = load("{workload}")
    return replace(plain, call=Slowed(plain.call))
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How much is to be measured, in all.

    `pairs` are of each workload and condition, `equal` live gates of equal trees, and `planted`
    live gates of a planted slowdown of each shape; `busy` processes run beside crowded pairs.
    """

    pairs: int
    equal: int
    planted: int
    conditions: Sequence[Condition]
    busy: int
    results: Path

    def __post_init__(self) -> None:
        if self.pairs < LEAST_PAIRS:
            raise StepbenchError(f"{self.pairs} pairs: there must be at least {LEAST_PAIRS}")


@contextmanager
def trees(workload: str, percent: int, shape: Shape) -> Iterator[tuple[Tree, Tree]]:
    """Two commits' trees: the second slower by so many percent in total, or equal to the first."""
    with TemporaryDirectory() as made, ExitStack() as stack:
        commits = []
        git(Path(made), "init", "-q")
        for planted in (0, percent):
            source = PLANTED.format(
                workload=workload, percent=planted, period=shape.period, hits=shape.hits
            )
            Path(made, "planted.py").write_text(source, encoding="utf-8")
            git(Path(made), "add", "-A")
            git(Path(made), "commit", "-q", "--allow-empty", "-m", f"{planted}%")
            commits.append(git(Path(made), "rev-parse", "HEAD"))
        project = Project.at(Path(made))
        old, new = (stack.enter_context(project.tree(commit)) for commit in commits)
        yield old, new


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=aa", "-c", "user.email=aa@example.org")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def busy(many: int) -> Iterator[None]:
    """The machine with so many processes beside what is measured that do nothing but compute."""
    spin = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(spin) for _ in range(many)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def condition_of(pairs: Sequence[Pair]) -> Condition:
    """What the machine was like while the pairs were measured."""
    foreign = statistics.fmean(one.foreign_cores for one in pairs)
    return "quiet" if foreign < FOREIGN_CORES else "crowded"


def measure_pairs(
    file: Path, machine: dict[str, Any], condition: Condition, wanted: int, tell: Tell
) -> None:
    """Add pairs of equal trees, a start of each workload in turn, until there are `wanted`.

    Raises:
        StepbenchError: the machine was in the other condition all the time.
    """
    for _ in range(2 * wanted * len(WORKLOADS) // PAIRS_A_START):
        known = [line["workload"] for line in read(file) if line["condition"] == condition]
        workload = min(WORKLOADS, key=known.count)
        if (done := known.count(workload)) >= wanted:
            return
        tell(f"{workload}, {condition}: {done} of {wanted} pairs")
        add_start(file, machine, workload)
    raise StepbenchError(
        f"too few pairs were measured on a {condition} machine, of {wanted} a workload; more busy "
        "processes crowd it, and fewer others leave it quiet"
    )


def add_start(file: Path, machine: dict[str, Any], workload: str) -> None:
    """One start of both interpreters, and its pairs."""
    index = PAIRS_A_START * sum(line["workload"] == workload for line in read(file))
    with trees(workload, 0, SHAPES["uniform"]) as (old, new):
        reference, candidate = (Side(case=CASE, tree=str(tree.folder)) for tree in (old, new))
        begins = order_of(index // PAIRS_A_START)
        with PairedRunner(reference, candidate, machine, SETTINGS, begins) as runner:
            pairs = [
                runner.pair(INTERLEAVED, order_of(index + more)) for more in range(PAIRS_A_START)
            ]
    about = {"workload": workload, "condition": condition_of(pairs), "at": now()}
    for pair in pairs:
        add(file, {**about, "pair": rounded(pair)})


def run_gates(
    file: Path, machine: dict[str, Any], percent: int, shape: str, wanted: int, tell: Tell
) -> None:
    """Run whole gates, time and counters, until there are `wanted` of this shape, by workload."""
    kind = {"percent": percent, "shape": shape}
    while True:
        known = [line["workload"] for line in read(file) if kind.items() <= line.items()]
        if len(known) >= wanted:
            return
        workload = min(GATED, key=known.count)
        tell(f"{workload}: {percent}% {shape}, {len(known)} of {wanted} gates")
        with trees(workload, percent, SHAPES[shape]) as (old, new):
            session = Session(old, new, [CASE], machine)
            session.run()
        [case] = session.told().cases
        if case.time is None:
            raise StepbenchError(f"a gate of {percent}% gave no pairs: {case.candidate}")
        told = {
            "condition": condition_of([one.pair for one in case.time.pairs]),
            "verdict": case.time.verdict,
            "counters": len(case.differences),
            "figure": case.time.figure,
            "estimate": case.time.estimate,
            "p": case.time.p,
            "pairs": len(case.time.pairs),
        }
        add(file, {**kind, "workload": workload, "at": now(), **told})


def check(plan: Asked, tell: Tell) -> str:
    """Measure what is missing and write the page; returns its text, in Markdown.

    Raises:
        StepbenchError: the files were measured on something else, or see `measure_pairs`.
    """
    machine = claimed_machine()
    folder = plan.results / machine["name"]
    pairs = opened(folder / "pairs.jsonl", machine, protocol=PROTOCOL)
    gates = opened(folder / "gates.jsonl", machine, protocol=PROTOCOL)
    for name in plan.conditions:
        with busy(plan.busy if name == "crowded" else 0):
            measure_pairs(pairs, machine, name, plan.pairs, tell)
    for shape in SHAPES:
        run_gates(gates, machine, PLANTED_PERCENT, shape, plan.planted, tell)
    run_gates(gates, machine, 0, "uniform", plan.equal, tell)
    text = report(machine, torch.__version__, read(pairs), read(gates))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text
