"""Pairs of fresh processes of one and the same case: how far equal code lies apart here.

    python -m stepbench.selfcheck.null_pairs --workload gpt-124m --combination bf16 --pairs 24

What minimum effects and thresholds have to be wider than. Needs no repository. Every pair is kept
with all of its steps in results/aa/<machine>/ when it is there: the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.gate.gate import SETTINGS
from stepbench.measuring.fork_server import PROTOCOL
from stepbench.measuring.pairs import PairedRunner, PairFailed, method_for, order_of
from stepbench.measuring.sweep import claimed_machine
from stepbench.records.case import Case
from stepbench.records.pair import Pair, Side
from stepbench.selfcheck.journal import add, opened, read
from stepbench.stats.rule import PAIRS_A_START
from stepbench.store import now
from stepbench.training.techniques import parse
from stepbench.training.workloads import canonical, default

OUT_OF_TIME = 3


def measure(file: Path, case: Case, machine: Mapping[str, Any], wanted: int, until_s: float) -> int:
    """Add pairs until there are `wanted`; 3 where `time.monotonic` reached `until_s` before.

    Raises:
        PairFailed: one of the processes gave no number.
    """
    side, method = Side(case=case), None
    while (known := len(read(file))) < wanted:
        begins = order_of(known // PAIRS_A_START)
        with PairedRunner(side, side, machine, SETTINGS, begins) as runner:
            if method is None:
                one = runner.measurement("reference")
                method = method_for(one, one, ranks=case.ranks, machine=machine)
            for index in range(known, min(wanted, known + PAIRS_A_START)):
                if time.monotonic() > until_s:
                    return OUT_OF_TIME
                add(file, {"at": now(), "pair": runner.pair(method, order_of(index)).to_json()})
    return 0


def told(pairs: Sequence[Pair]) -> str:
    """A line for each figure: spread of the ratios of equal sides, and the largest of them."""
    disturbed = sum(bool(pair.disturbances) for pair in pairs)
    lines = [f"{len(pairs)} pairs of equal sides, {disturbed} of them disturbed"]
    for figure in pairs[0].figures:
        ratios = [pair.log_ratio(figure) for pair in pairs]
        lines.append(
            f"{figure}: median {statistics.median(ratios):+.2%}, standard deviation "
            f"{statistics.pstdev(ratios):.2%}, largest {max(map(abs, ratios)):.2%}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload")
    parser.add_argument("--combination", default="baseline")
    parser.add_argument("--pairs", type=int, default=24, help="how many there are to be")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no pair after so long")
    parser.add_argument("--results", type=Path, default=Path("results"))
    asked = parser.parse_args()
    until_s = time.monotonic() + 60 * asked.minutes
    if asked.pairs < 1:
        raise StepbenchError(f"--pairs {asked.pairs}: there must be at least 1")
    machine = claimed_machine()
    case = Case(
        workload=canonical(asked.workload or default(machine)),
        combination=parse(asked.combination),
    )
    name = f"null-{case.workload}-{case.combination}.jsonl".replace(":", "-").replace("/", "-")
    file = opened(asked.results / "aa" / machine["name"] / name, machine, protocol=PROTOCOL)
    code = measure(file, case, machine, asked.pairs, until_s)
    if pairs := [Pair.from_json(line["pair"]) for line in read(file)]:
        print(f"{case} on {machine['name']}: {told(pairs)}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StepbenchError, PairFailed) as error:
        sys.exit(f"null_pairs: {error}")
