"""The command `stepbench selfcheck`: arguments and printing."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from stepbench.cli.options import AS_JSON, tell

if TYPE_CHECKING:
    from stepbench.selfcheck.checking import Finding

EXIT_CODES = (
    "Exit codes: 0 everything works that this machine should do; 1 something does not; 2 a "
    "mistake, told in one line; 130 stopped by Ctrl-C."
)


@click.group()
def selfcheck() -> None:
    """Check the suite itself on this machine."""


@selfcheck.command(epilog=EXIT_CODES)
@AS_JSON
def device(as_json: bool) -> int:
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
        if as_json:
            tell({"machine": machine, "checks": [one.to_json() for one in findings]})
        elif findings:
            tell(_terminal(findings, shutil.get_terminal_size().columns))
    return int(any(one.outcome == "does not" for one in findings))


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
