"""Do the intervals keep their promise? The default sweep, again and again under a changing load.

`stepbench selfcheck intervals` measures what `make bench` does on one rank, in 8 rounds, twice,
while other processes keep processors busy or leave them alone at random. It tells how often each
sweep's ratios lie in the other's intervals, beside how often they would if nothing but chance told
the two apart. Sweeps lie under results/agreement/<machine>/; an interrupted one is gone on with.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from tabulate import tabulate

from stepbench.comparable import machine_difference
from stepbench.errors import StepbenchError
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import claimed_machine, close_sweep, open_sweep, sweep
from stepbench.metrics.beside import MEMORY_RATIO, SPEEDUP
from stepbench.records import machine as machines
from stepbench.records.case import Case
from stepbench.records.run import Record
from stepbench.report import formats
from stepbench.stats import measures
from stepbench.stats.measures import Estimate
from stepbench.store import RunFile, read_all
from stepbench.training.choice import product
from stepbench.training.workloads import canonical, default
from stepbench.versions import MEASURE_VERSION

ROUNDS = 8
# What `make bench` measures on one rank: a test holds it against benchmarks/.
PRODUCTS = (
    (("fp32", "tf32", "fp16", "bf16"),),
    (("accum1", "accum2", "accum4", "accum8"),),
    (("ckpt0", "ckpt1", "ckpt2", "ckpt3", "ckpt-sqrt", "ckpt-selective"),),
    (
        ("fp32", "bf16"),
        ("accum1", "accum2", "accum4"),
        ("ckpt0", "ckpt1", "ckpt2", "ckpt-selective"),
    ),
    (("fp16",), ("accum4",), ("ckpt2",)),
)
DRAWS = 100_000
# Keeps a processor busy or leaves it alone, in turn, each for a random time of 5 s in the mean.
LOAD = """
import os, random, sys, time
draw, parent = random.Random(int(sys.argv[1])), os.getppid()
while os.getppid() == parent:
    until = time.monotonic() + draw.expovariate(1 / 5)
    if draw.random() < 0.5:
        time.sleep(max(0, until - time.monotonic()))
    while time.monotonic() < until:
        pass
"""


def cases(workload: str) -> list[Case]:
    """What `make bench` measures on one rank, of a workload."""
    combinations = dict.fromkeys(one for names in PRODUCTS for one in product(names))
    return [Case(workload=workload, combination=one) for one in combinations]


@contextmanager
def changing_load(processes: int) -> Iterator[None]:
    """So many processes that come and go meanwhile."""
    command = [sys.executable, "-c", LOAD]
    started = [subprocess.Popen([*command, str(seed)]) for seed in range(processes)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def measured(
    results: Path, wanted: int, cores: int, workload: str, tell: Callable[[str], None]
) -> list[RunFile]:
    """The newest `wanted` sweeps of this ruler, measuring those that are missing."""
    while len(known := _closed(results)) < wanted:
        file = open_sweep(results, Settings(rounds=ROUNDS), project=Path.cwd())
        with changing_load(cores):
            sweep(
                file,
                cases(workload),
                deadline_s=Settings().deadline_s,
                done=lambda record: tell(f"{record.case}: {record.outcome}"),
                out_of_time=lambda: False,
            )
            close_sweep(file)
    return known[-wanted:]


def _closed(results: Path) -> list[RunFile]:
    here = claimed_machine()
    return [
        file
        for file in read_all(results)[0]
        if file.closed
        and file.run.measure_version == MEASURE_VERSION
        and machine_difference(file.run.machine, here) is None
    ]


@cache
def promised(rounds: tuple[int, int], widened: bool) -> tuple[float, float]:
    """How often chance alone puts a second median into a first interval, and lets both overlap.

    Of any distribution, for so many rounds each: only the order of the values matters, so uniform
    ones are drawn.
    """
    draw = np.random.default_rng(0).random((DRAWS, sum(rounds)))
    first, second = (np.sort(one, axis=1) for one in np.split(draw, [rounds[0]], axis=1))
    ends = [
        _ends(one, number, widened) for one, number in zip((first, second), rounds, strict=True)
    ]
    (low, high), (other_low, other_high) = ends
    median = np.median(second, axis=1)
    within = (low <= median) & (median <= high)
    overlap = (low <= other_high) & (other_low <= high)
    return float(within.mean()), float(overlap.mean())


def _ends(drawn: np.ndarray, rounds: int, widened: bool) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of each row's interval: which of its sorted values `estimate` takes."""
    places = measures.estimate(range(rounds), widened=widened)
    return drawn[:, int(places.low or 0)], drawn[:, int(places.high or 0)]


def compared(first: RunFile, second: RunFile) -> list[tuple[Record, Record]]:
    """The cases that both sweeps have a ratio of."""
    pairs = ((one, second.find(one.case)) for one in first.records)
    return [(one, other) for one, other in pairs if other and one.outcome.ok and other.outcome.ok]


def agreement(first: Record, second: Record) -> tuple[bool, bool]:
    """Whether the second's ratio lies in the first's interval, and whether the two overlap."""
    one, other = SPEEDUP.of(first), SPEEDUP.of(second)
    low, high = _interval(one)
    other_low, other_high = _interval(other)
    return low <= other.median <= high, low <= other_high and other_low <= high


def _interval(one: Estimate) -> tuple[float, float]:
    if one.low is None or one.high is None:
        raise StepbenchError(f"{one.rounds} rounds have no interval: measure {ROUNDS}")
    return one.low, one.high


def report(files: Sequence[RunFile]) -> str:
    """The whole of it in Markdown: how often, and every case."""
    run = files[0].run
    versions = dict.fromkeys(file.run.software["torch"] for file in files)
    return "\n".join(
        [
            "# Do the intervals keep their promise?",
            "",
            f"{machines.summary(run.machine)}, torch {' and '.join(versions)}, ruler "
            f"{run.measure_version}. "
            "`stepbench selfcheck intervals` measures and writes this page.",
            "",
            f"What `make bench` measures on one rank, of {files[0].records[0].case.workload}, in "
            f"{ROUNDS} rounds, {len(files)} times. "
            "Meanwhile each of as many processes as there are processors kept one busy or left it "
            "alone, in turn, for random times of 5 s in the mean.",
            "",
            tabulate(map(_described, files), headers="keys", tablefmt="pipe"),
            "",
            "*Promised* is how often chance alone does it, whatever the distribution: two draws of "
            "as many rounds, the same intervals. In brackets: 95% Clopper-Pearson intervals, as if "
            "the cases of a sweep, which share its load, were independent.",
            "",
            rates(files),
            "",
            "Speed-up over the baseline, each sweep's median and 95% interval; bold where a later "
            "median lies outside of the first interval:",
            "",
            every_case(files),
            "",
        ]
    )


def _described(file: RunFile) -> dict[str, str]:
    rounds = [one for record in file.records for one in record.rounds]
    loud = sum(map(measures.disturbed, rounds))
    return {
        "sweep": formats.moment(file.run.started_at),
        "commit": file.run.source,
        "cases with a ratio": str(sum(record.outcome.ok for record in file.records)),
        "rounds": str(len(rounds)),
        "disturbed": f"{loud / len(rounds):.0%}",
        "machine": formats.calibration(file.calibrations).removeprefix("calibration: "),
    }


def rates(files: Sequence[RunFile]) -> str:
    """How often sweeps agreed with each other, beside what was promised."""
    pairs = [
        pair
        for first, second in itertools.combinations(files, 2)
        for pair in compared(first, second)
    ]
    swapped = [(second, first) for first, second in pairs]
    rows = [
        _rate(what, which, index)
        for what, which, index in (
            ("the later ratio in the earlier interval", pairs, 0),
            ("the earlier ratio in the later interval", swapped, 0),
            ("both intervals overlap", pairs, 1),
        )
    ]
    largest = max(
        abs(MEMORY_RATIO.of(second).median / MEMORY_RATIO.of(first).median - 1)
        for first, second in pairs
    )
    table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
    return f"{table}\n\nRatios of memory differed by {largest:.2%} at most."


def _rate(what: str, pairs: Sequence[tuple[Record, Record]], index: int) -> dict[str, str]:
    """How often pairs of records agree, by that index of `agreement`, and how often they should."""
    seen = [agreement(*pair)[index] for pair in pairs]
    chance = [
        promised(
            (len(measures.judged(first)), len(measures.judged(second))),
            bool(measures.disturbances(first)),
        )[index]
        for first, second in pairs
    ]
    low, high = binomtest(sum(seen), len(seen)).proportion_ci(0.95, method="exact")
    return {
        "agreement": what,
        "comparisons": str(len(seen)),
        "agreed": f"{sum(seen)}: {np.mean(seen):.1%} [{low:.1%}, {high:.1%}]",
        "promised": f"{np.mean(chance):.1%}",
    }


def every_case(files: Sequence[RunFile]) -> str:
    """Each case's ratio in each sweep."""
    first, *others = files
    rows = []
    for record in first.records:
        again = [file.find(record.case) for file in others]
        if not record.outcome.ok or not all(one and one.outcome.ok for one in again):
            told = [one.outcome.kind if one else "" for one in (record, *again)]
        else:
            told = [formats.estimate(SPEEDUP.of(record))]
            for other in filter(None, again):
                text = formats.estimate(SPEEDUP.of(other))
                told.append(text if agreement(record, other)[0] else f"**{text}**")
        rows.append([formats.markdown(record.case.chosen), *told])
    headers = ["combination", *(formats.moment(file.run.started_at) for file in files)]
    return tabulate(rows, headers, "pipe", disable_numparse=True)


def check(workload: str | None, sweeps: int, results: Path, tell: Callable[[str], None]) -> str:
    """Measure the sweeps that are missing and write the page; returns its text, in Markdown.

    Raises:
        StepbenchError: fewer than two sweeps, or no such workload.
    """
    if sweeps < 2:
        raise StepbenchError(f"{sweeps} sweeps: two are needed to agree")
    machine = claimed_machine()
    name = canonical(workload or default(machine))
    text = report(measured(results, sweeps, int(machine["cores"]), name, tell))
    (results / machine["name"] / "README.md").write_text(text, encoding="utf-8")
    return text
