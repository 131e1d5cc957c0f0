"""The command `stepbench run`: arguments and printing."""

from __future__ import annotations

from pathlib import Path

import click

from stepbench.cli.options import THREADS, VARY, WORKLOAD, Output, output, results_in
from stepbench.errors import StepbenchError

EXIT_CODES = (
    "Exit codes: 0 every case has a number or is unsupported here; 1 a case failed, ran out of "
    "memory or would have given a wrong number; 2 a mistake, told in one line; 3 --minutes ran "
    "out, run the same command again to go on; 130 stopped by Ctrl-C."
)


@click.command(epilog=EXIT_CODES, short_help="combinations beside their baseline")
@click.argument("combinations", nargs=-1, metavar="[COMBINATION]...")
@VARY
@WORKLOAD
@click.option(
    "--ranks",
    metavar="N,…",
    help="Ranks of what is data-parallel, one case for each number. Default: torchrun's processes, "
    "or all GPUs, or 2 on a CPU.",
)
@click.option(
    "--weak",
    is_flag=True,
    help="Grow the global batch with the ranks (weak scaling) instead of splitting it over them.",
)
@click.option("-r", "--rounds", default=2, show_default=True, help="6 or more give intervals.")
@click.option(
    "--extra-rounds",
    default=2,
    show_default=True,
    help="Measure at most so many contended rounds again; 0 forbids it.",
)
@click.option("--steps", default=20, show_default=True, help="Most timed steps a process.")
@THREADS
@click.option("--minutes", type=float, help="Start no case after so long, and exit with 3.")
@click.option("--commit", help="What is measured, where there is no repository to ask.")
@click.option(
    "--deadline-s", default=600.0, show_default=True, help="Kill a process after so long."
)
@results_in()
@output("table", "markdown", "json")
def run(
    combinations: tuple[str, ...],
    choices: tuple[str, ...],
    workload: str | None,
    ranks: str | None,
    weak: bool,
    rounds: int,
    extra_rounds: int,
    steps: int,
    threads: int,
    minutes: float | None,
    commit: str | None,
    deadline_s: float,
    results: Path,
    output: Output,
) -> int:
    """Measure combinations beside their baseline and print the table.

    Names are measured each as it stands, --vary as a product of its axes, both together as the
    union. Without any, every example of every axis is measured alone. A run that was interrupted is
    continued by the same command: what it has measured is kept.

    \b
      stepbench run bf16+accum4 -w gpt-1m@seq=128,batch=4
      stepbench run --vary fp32,bf16 --vary checkpointing --rounds 8
      stepbench run ddp fsdp2+ckpt1 --ranks 1,2
      torchrun --nnodes 2 … -m stepbench run ddp --ranks 2
    """
    from stepbench.measuring import command
    from stepbench.report import tables
    from stepbench.report.progress import Bar

    if not (minutes is None or minutes >= 0) or not deadline_s > 0:
        raise StepbenchError(
            f"--minutes {minutes} and --deadline-s {deadline_s}: times must be numbers from 0 up"
        )
    asked = command.Asked(
        combinations=combinations,
        choices=choices,
        workload=workload,
        ranks=ranks,
        weak=weak,
        rounds=rounds,
        extra_rounds=extra_rounds,
        steps=steps,
        threads=threads,
        minutes=minutes,
        deadline_s=deadline_s,
        commit=commit,
        results=results,
    )
    file, exit_code = command.measure(asked, Bar)
    if file is not None:
        output.tell(
            table=lambda: tables.terminal(file),
            markdown=lambda: tables.markdown(file),
            json=lambda: tables.as_json(file),
        )
    if exit_code == command.OUT_OF_TIME:
        click.echo("stepbench: time ran out; run the same command again to go on", err=True)
    return exit_code
