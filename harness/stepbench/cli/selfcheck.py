"""The command `stepbench selfcheck`: arguments and printing."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepbench.cli.options import WORKLOAD, Output, output, results_in, tell

if TYPE_CHECKING:
    from stepbench.selfcheck.alarm_rates import Condition
    from stepbench.selfcheck.checking import Finding

EXIT_CODES = (
    "Exit codes: 0 everything works that this machine should do; 1 something does not; 2 a "
    "mistake, told in one line; 130 stopped by Ctrl-C."
)


@click.group(short_help="does the suite work here, is it cheap, is it right?")
def selfcheck() -> None:
    """Check the suite itself on this machine: does it work, is it cheap, is it right?"""


@selfcheck.command(epilog=EXIT_CODES)
@output("table", "json")
def device(output: Output) -> int:
    """Try on this machine, a few seconds each, all that measuring relies on.

    Precisions, attention kernels, compilation, offloading, process groups, clocks, memory
    figures and outcomes, each in a process of its own. A check works, does not, or is not here:
    this machine lacks what it needs. Run it first on a new GPU.
    """
    from stepbench.measuring.sweep import claimed_machine
    from stepbench.selfcheck.checking import find_out
    from stepbench.selfcheck.device import CHECKS

    machine = claimed_machine()
    findings: list[Finding] = []
    try:
        for check in CHECKS:
            findings.append(finding := find_out(check, machine))
            click.echo(f"{finding.name}: {finding.outcome}: {finding.reason}", err=True)
            if finding.traceback:  # at once: whatever ends this process, its log has it
                click.echo(finding.traceback, err=True)
    finally:  # stopped by Ctrl-C, too
        if findings or output.format == "json":
            output.tell(
                table=lambda: _terminal(findings, shutil.get_terminal_size().columns),
                json=lambda: {"machine": machine, "checks": [one.to_json() for one in findings]},
            )
    return int(any(one.outcome == "does not" for one in findings))


@selfcheck.command(epilog=EXIT_CODES)
@WORKLOAD
@click.option(
    "--pairs",
    type=click.IntRange(min=6),
    default=60,
    show_default=True,
    help="Pairs of the harness' steps and those of a loop by hand.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Pairs of processes for each workload whose steps do not cost alike.",
)
def overhead(workload: str | None, pairs: int, rounds: int) -> int:
    """What does measuring cost, and is the cost that it shows the true one?

    Works where steps by the harness cost what the same loop by hand does, within 1%, the step shown
    of uneven workloads is that of a plain loop, within 5%, and a process on a CPU costs at most
    0.5 s beyond its own steps.
    """
    from stepbench.selfcheck.overhead import check

    return int(not check(workload, pairs, rounds, tell))


@selfcheck.command(epilog=EXIT_CODES)
@click.option(
    "--pairs", default=40, show_default=True, help="Pairs of each workload and condition, in all."
)
@click.option("--equal", default=30, show_default=True, help="Live gates of equal trees.")
@click.option(
    "--planted", default=3, show_default=True, help="Live gates of a planted 5%, of each shape."
)
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    type=click.Choice(["crowded", "quiet"]),
    default=("crowded", "quiet"),
    show_default=True,
    help="Measure pairs on the machine as it is, or beside busy processes.",
)
@click.option(
    "--busy",
    type=click.IntRange(min=0),
    help="Busy processes beside crowded pairs. Default: as many as there are processors.",
)
@results_in("results/aa")
def gate(
    pairs: int,
    equal: int,
    planted: int,
    conditions: tuple[Condition, ...],
    busy: int | None,
    results: Path,
) -> int:
    """How often is the gate wrong here? About an hour; the same command goes on.

    Pairs and whole gates of equal trees, and of planted slowdowns.
    """
    from stepbench.selfcheck.false_alarms import Asked, check

    asked = Asked(
        pairs=pairs,
        equal=equal,
        planted=planted,
        conditions=conditions,
        busy=len(os.sched_getaffinity(0)) if busy is None else busy,
        results=results,
    )
    tell(check(asked, partial(click.echo, err=True)))
    return 0


@selfcheck.command(epilog=EXIT_CODES)
@WORKLOAD
@click.option("--sweeps", default=2, show_default=True, help="Sweeps that are held together.")
@results_in("results/agreement")
def intervals(workload: str | None, sweeps: int, results: Path) -> int:
    """Do the intervals keep their promise here? About half an hour; the same command goes on.

    The default sweep, twice, beside processes that come and go.
    """
    from stepbench.selfcheck.intervals import check

    tell(check(workload, sweeps, results, partial(click.echo, err=True)))
    return 0


def _terminal(findings: Sequence[Finding], width: int) -> str:
    """A table whose reasons are cut at the width, then what does not work, whole."""
    from tabulate import tabulate

    rows = [[one.name, one.outcome, f"{one.seconds:.1f}", one.reason] for one in findings]
    table = tabulate(
        rows,
        headers=["check", "outcome", "s", "reason"],
        colalign=("left", "left", "right", "left"),
        disable_numparse=True,
    )
    head, rule, *body = table.splitlines()
    cut = (line if len(line) <= width else line[: width - 1] + "…" for line in body)
    seconds = sum(one.seconds for one in findings)
    outcomes = Counter(one.outcome for one in findings)
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in ("works", "does not", "not here"))
    broken = (
        f"\n{one.name} does not work: {one.reason}\n{one.traceback or ''}"
        for one in findings
        if one.outcome == "does not"
    )
    return "\n".join([head, rule[:width], *cut, "", f"{counts}; {seconds:.0f} s", *broken])
