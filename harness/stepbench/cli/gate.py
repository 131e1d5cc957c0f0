"""The command `stepbench gate`: arguments and printing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepbench.cli.options import THREADS, VARY, WORKLOAD, Output, output, tell, write
from stepbench.errors import StepbenchError
from stepbench.records.verdict import JUDGED, Gate

if TYPE_CHECKING:
    from stepbench.gate.gate import Time

DEFAULT_CASES = ("baseline", "bf16", "accum2", "ckpt1")
EXIT_CODES = (
    "Exit codes: 0 nothing regressed: a suspect, an improvement, a case that works again, what "
    "this machine cannot run and what could not be decided are told and do not fail; 1 a "
    "regression: of time, counters or memory, another loss than rounding explains, or a case that "
    "gives a number on BASE only; 2 a mistake, told in one line, a case that may not be compared, "
    "or one that gives a number on neither side; 3 by --strict, something could not be decided; "
    "130 stopped by Ctrl-C."
)


@click.command(epilog=EXIT_CODES, short_help="is HEAD slower or larger than BASE?")
@click.argument("base", required=False)
@click.argument("head", required=False)
@click.option(
    "-c",
    "--combination",
    "combinations",
    multiple=True,
    metavar="NAME",
    help=f"A combination to compare, any number of times. Default: {', '.join(DEFAULT_CASES)}.",
)
@VARY
@WORKLOAD
@THREADS
@click.option(
    "--workload-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take today's file of the workload on both sides: for commits that lack it.",
)
@click.option(
    "--project",
    type=click.Path(path_type=Path),
    default=Path("."),
    help="Another repository, or the folder of one that its code is imported from.",
)
@click.option(
    "--time",
    type=click.Choice(["blocking", "advisory", "off"]),
    help="Whether time is compared, and then whether it can fail the gate. Default: blocking.",
)
@click.option("--counters-only", is_flag=True, hidden=True)  # --time off, as it was called
@click.option("--fail-fast", is_flag=True, help="Measure no time once counters have decided.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop measuring after so long; what is undecided then is not enough data.",
)
@click.option("--strict", is_flag=True, help="Exit with 3 where something could not be decided.")
@click.option(
    "--intended",
    metavar="COUNTERS",
    default="",
    help="Counters that HEAD changes on purpose, with commas between them: told, and no failure. "
    f"Of {', '.join(JUDGED)}.",
)
@click.option(
    "--against-accepted", is_flag=True, help="Hold the counters against the accepted ones."
)
@click.option(
    "--accept-counters", is_flag=True, help="Write the working tree's counters as accepted."
)
@click.option("--baselines", is_flag=True, hidden=True)  # --against-accepted, as it was called
@click.option("--accept", is_flag=True, hidden=True)  # --accept-counters
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML to a file.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a page of the pairs' values.")
@output("table", "markdown", "json")
def gate(
    base: str | None,
    head: str | None,
    combinations: tuple[str, ...],
    choices: tuple[str, ...],
    workload: str | None,
    workload_file: Path | None,
    threads: int,
    project: Path,
    time: Time | None,
    counters_only: bool,
    fail_fast: bool,
    minutes: float | None,
    strict: bool,
    intended: str,
    against_accepted: bool,
    accept_counters: bool,
    baselines: bool,
    accept: bool,
    junit: Path | None,
    plot: Path | None,
    output: Output,
) -> int:
    """Is HEAD heavier, busier or slower than BASE?

    BASE is a commit; by default where the current branch left the default one. HEAD is a commit; by
    default the working tree with its edits. Both are measured from copies, each with its own code.
    First what no clock touches: operators, FLOPs, bytes. Then time, in pairs of fresh processes
    taking turns; a slowdown has to show in 20 pairs and again in 12 fresh ones.

    \b
      stepbench gate                         this branch, edits included
      stepbench gate v1.0 main -c bf16       two commits, one combination
      stepbench gate --time off              no clock: for a busy CI machine
      stepbench gate --fail-fast --minutes 30 --strict       for CI
      stepbench gate v0.1 -w train:workload --workload-file train.py    v0.1 had none
      stepbench gate --intended loss,gradient_norm,update    a new loss, meant to be one
      stepbench gate --accept-counters       keep today's counters in stepbench-baselines/
      stepbench gate --against-accepted      hold the working tree against them
    """
    from stepbench.gate import command
    from stepbench.gate.gate import Terms

    accept, baselines = accept or accept_counters, baselines or against_accepted
    if (baselines or accept) and (base or baselines == accept):
        raise StepbenchError(
            "--against-accepted and --accept-counters take the working tree alone; choose one, and "
            "name no commit"
        )
    if (baselines or accept) and (time or fail_fast or minutes):
        raise StepbenchError(
            "--against-accepted and --accept-counters measure no time; leave out --time, "
            "--fail-fast and --minutes"
        )
    if (baselines or accept) and intended:
        raise StepbenchError(
            "--intended is for two sides; --accept-counters keeps what the tree counts"
        )
    if counters_only:
        time = "off"
    if plot and (time == "off" or baselines or accept):
        raise StepbenchError("--plot shows pairs, and without time there are none; leave one out")
    terms = Terms(
        time=time or "blocking",
        fail_fast=fail_fast,
        minutes=minutes or math.inf,
        strict=strict,
        intended=_judged(intended),
    )
    if workload_file and (baselines or accept or ":" not in (workload or "")):
        raise StepbenchError(
            "--workload-file is for two sides and a workload in it: -w module:attribute"
        )
    asked = command.Asked(
        project=project,
        base=base,
        head=head,
        workload=workload,
        workload_file=workload_file,
        threads=threads,
        terms=terms,
    )
    if not combinations and not choices:
        combinations = DEFAULT_CASES
    cases = command.chosen(asked, combinations, choices)
    show = _printer(output, junit, plot)
    progress = partial(click.echo, err=True)
    if accept:
        path, missing = command.accept(asked, cases, progress)
        for line in missing:
            click.echo(f"stepbench: no baseline for {line}", err=True)
        tell(f"accepted in {path}: commit it")
        return 0
    if baselines:
        return command.against_baselines(asked, cases, progress, show)
    return command.compare(asked, cases, progress, show)


def _judged(names: str) -> tuple[str, ...]:
    """The counters that are named; StepbenchError for one that is none."""
    named = tuple(filter(None, (one.strip() for one in names.split(","))))
    if unknown := [one for one in named if one not in JUDGED]:
        raise StepbenchError(
            f"--intended {unknown[0]}: no such counter; there are {', '.join(JUDGED)}"
        )
    return named


def _printer(output: Output, junit: Path | None, plot: Path | None) -> Callable[[Gate], None]:
    """Prints a gate's result, and writes the files that were asked for."""
    from stepbench.report import gate_tables

    def show(result: Gate) -> None:
        output.tell(
            table=lambda: gate_tables.terminal(result),
            markdown=lambda: gate_tables.markdown(result),
            json=lambda: gate_tables.as_json(result),
        )
        if junit:
            write(junit, gate_tables.junit(result))
        if plot:
            from stepbench.report import pair_plot

            write(plot, pair_plot.page(result))

    return show
