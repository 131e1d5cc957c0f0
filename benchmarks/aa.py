"""How often is the gate wrong on this machine? Equal trees and planted slowdowns, measured.

Not for ASV: `make aa` measures pairs of equal trees and of trees with planted slowdowns, and whole
gates live, and prints how often the rule was right (`aa_rates`). Every pair and every gate is added
to a file under results/aa/<machine>/ when it is there, so that the same command goes on after an
interruption; larger numbers in its arguments add to what there is.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.aa_rates import LEAST_PAIRS, report
from harness.core import Case, StepbenchError
from harness.judging.gate import SETTINGS, Session
from harness.judging.pairs import Ring, order_of
from harness.judging.trees import Project, Tree
from harness.measuring.sweep import claimed_machine
from harness.selfcheck.journal import add, opened, read
from harness.store import now
from harness.verdicts import SUMMARIES, Block, Pair, Side

PERCENTS = (0, 1, 2, 3, 5, 10)
SIDES = ("reference", "candidate")
# Pairs from the same two interpreters: a gate takes new ones for each stage too.
PAIRS_A_RING = 12
CASE = Case(workload="planted:workload")
# The planted work is a share of the CPU time of the step before: it grows with the step, whatever
# the machine makes of that.
PLANTED = '''
"""gpt-tiny, and in each step so many percent of the step before it in a loop that does nothing."""

from dataclasses import replace
from time import process_time_ns

from harness.training.workloads import load

PERCENT = {percent}


class Slowed:
    def __init__(self, call):
        self.call, self.ended_ns = call, None

    def __call__(self, model, inputs):
        began_ns = process_time_ns()
        if self.ended_ns is not None:
            until_ns = began_ns + (began_ns - self.ended_ns) * PERCENT // 100
            while process_time_ns() < until_ns:
                pass
        self.ended_ns = process_time_ns()
        return self.call(model, inputs)


def workload():
    plain = load("gpt-tiny")
    return replace(plain, call=Slowed(plain.call))
'''


@contextmanager
def trees(percent: int) -> Iterator[tuple[Tree, Tree]]:
    """Two commits' trees: the second slower by so many percent, or the same but for its name."""
    with TemporaryDirectory() as made, ExitStack() as stack:
        commits = []
        git(Path(made), "init", "-q")
        for planted in (0, percent):
            Path(made, "planted.py").write_text(PLANTED.format(percent=planted), encoding="utf-8")
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


def measure_pairs(file: Path, machine: dict[str, Any], wanted: int) -> None:
    """Add pairs, a ring of each effect in turn, until there are `wanted` of each."""
    while True:
        known = [line["percent"] for line in read(file)]
        percent = min(PERCENTS, key=known.count)
        missing = wanted - known.count(percent)
        if missing <= 0:
            return
        print(f"{percent}%: {known.count(percent)} of {wanted} pairs", file=sys.stderr)
        with trees(percent) as (old, new):
            sides = (Side(case=CASE, tree=str(tree.folder)) for tree in (old, new))
            with Ring(*sides, machine, SETTINGS) as ring:
                for index in range(min(missing, PAIRS_A_RING)):
                    pair = ring.pair("ping-pong", order_of(index))
                    add(file, {"percent": percent, "at": now(), **compact(pair)})


def compact(pair: Pair) -> dict[str, Any]:
    """The pair with one figure a block, and each process' median step as ASV would store it."""
    steps = {side: [s for block in getattr(pair, side) for s in block.step_s] for side in SIDES}
    summarised = SUMMARIES[pair.summary]
    blocks = {
        side: tuple(
            Block(
                step_s=(round(summarised(block.step_s), 9),),
                cpu_s=(round(summarised(block.cpu_s), 9),),
            )
            for block in getattr(pair, side)
        )
        for side in SIDES
    }
    medians = {side: round(statistics.median(steps[side]), 9) for side in SIDES}
    return {"pair": replace(pair, **blocks).to_json(), "median_step_s": medians}


def run_gates(file: Path, machine: dict[str, Any], percent: int, wanted: int) -> None:
    """Run whole gates of one case, time and counters, until there are `wanted` of an effect."""
    while (done := sum(line["percent"] == percent for line in read(file))) < wanted:
        print(f"{percent}%: {done} of {wanted} gates", file=sys.stderr)
        with trees(percent) as (old, new):
            session = Session(old, new, [CASE], machine)
            session.run()
        [case] = session.told().cases
        if case.time is None:
            raise StepbenchError(f"a gate of {percent}% gave no pairs: {case.candidate}")
        told = {
            "verdict": case.time.verdict,
            "counters": len(case.differences),
            "figure": case.time.figure,
            "estimate": case.time.estimate,
            "p": case.time.p,
            "pairs": len(case.time.pairs),
            "disturbed": sum(bool(one.dropped_for) for one in case.time.pairs),
        }
        add(file, {"percent": percent, "at": now(), **told})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=120, help="pairs of each effect")
    parser.add_argument("--equal", type=int, default=100, help="live gates of equal trees")
    parser.add_argument("--planted", type=int, default=10, help="live gates of a planted 5%%")
    parser.add_argument("--results", type=Path, default=Path("results/aa"))
    asked = parser.parse_args()
    if asked.pairs < LEAST_PAIRS or asked.planted < 1 or asked.equal < 1:
        raise StepbenchError(
            f"--pairs must be at least {LEAST_PAIRS} and the gates at least 1 each"
        )
    machine = claimed_machine()
    folder = asked.results / machine["name"]
    pairs = opened(folder / "pairs.jsonl", machine)
    gates = opened(folder / "gates.jsonl", machine)
    measure_pairs(pairs, machine, asked.pairs)
    run_gates(gates, machine, 5, asked.planted)
    run_gates(gates, machine, 0, asked.equal)
    text = report(machine, torch.__version__, read(pairs), read(gates))
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StepbenchError as error:
        sys.exit(f"aa: {error}")
