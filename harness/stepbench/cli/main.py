"""The command `stepbench`: arguments and printing; each verb is one function of its module.

Exit codes: 0 every case has a number or is unsupported here; 1 a case failed, ran out of memory or
would have given a wrong number; 2 a mistake in the arguments or files, told in one line; 3 the time
given with --minutes ran out, run the same command again to go on; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from stepbench.cli.gate import gate
from stepbench.cli.options import AS_JSON, THREADS, VARY, WORKLOAD, results_in, tell
from stepbench.cli.selfcheck import selfcheck
from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.store import RunFile

OUT_OF_TIME = 3
EXIT_CODES = (
    "Exit codes: 0 every case has a number or is unsupported here; 1 a case failed, ran out of "
    "memory or would have given a wrong number; 2 a mistake, told in one line; 3 --minutes ran "
    "out, run the same command again to go on; 130 stopped by Ctrl-C."
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stepbench")
def stepbench() -> None:
    """Measure what each training technique really buys on this machine.

    A technique is one setting on one axis (bf16 on precision), a combination is spelled
    bf16+accum4+ckpt2, and every number stands beside its baseline: the same workload with nothing
    chosen, measured in turn in fresh processes.

    \b
      stepbench list                         what there is, and what this machine cannot run
      stepbench run bf16 bf16+ckpt1          measure two combinations
      stepbench run --vary precision         measure every technique of an axis
      stepbench report                       the newest results again
    """


@stepbench.command(epilog=EXIT_CODES)
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
@AS_JSON
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
    as_json: bool,
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
    from stepbench.measuring.settings import Settings
    from stepbench.measuring.sweep import open_sweep, this_machine
    from stepbench.measuring.team import (
        default_ranks,
        devices_here,
        dismiss,
        follow,
        leads,
        require_ranks,
        require_threads,
    )
    from stepbench.report import tables
    from stepbench.training.choice import numbers, sweep_of
    from stepbench.training.workloads import canonical, default

    if not (minutes is None or minutes >= 0) or not deadline_s > 0:
        raise StepbenchError(
            f"--minutes {minutes} and --deadline-s {deadline_s}: times must be numbers from 0 up"
        )
    if not leads():
        return follow()
    require_threads(threads, this_machine(), (*combinations, *choices))
    settings = Settings(
        rounds=rounds,
        extra_rounds=max(0, extra_rounds),
        max_steps=steps,
        min_steps=min(5, steps),
        threads=threads,
    )
    named = canonical(workload) if workload else default(this_machine())
    each = numbers(ranks) if ranks is not None else [default_ranks(this_machine())]
    cases = sweep_of(named, combinations, choices, ranks=each, weak=weak)
    require_ranks(cases)
    gpus = devices_here(max(case.ranks for case in cases))
    file = open_sweep(results, settings, project=Path.cwd(), commit=commit, gpus=gpus)
    exit_code = _measured(file, cases, minutes, deadline_s)
    dismiss(exit_code)
    tell(tables.as_json(file) if as_json else tables.terminal(file))
    if exit_code == OUT_OF_TIME:
        click.echo("stepbench: time ran out; run the same command again to go on", err=True)
    return exit_code


def _measured(
    file: RunFile, cases: Sequence[Case], minutes: float | None, deadline_s: float
) -> int:
    """Measure the cases under a bar, and close the run if all were; the exit code."""
    from stepbench.measuring.sweep import close_sweep, sweep
    from stepbench.report.progress import Bar

    began = time.monotonic()
    with Bar(len(cases)) as bar:
        finished = sweep(
            file,
            cases,
            deadline_s=deadline_s,
            done=bar.done,
            out_of_time=lambda: minutes is not None and time.monotonic() - began > 60 * minutes,
        )
    if not finished:
        return OUT_OF_TIME
    close_sweep(file)
    return int(any(record.outcome.kind in ("oom", "failed", "invalid") for record in file.records))


@stepbench.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Print Markdown instead of a terminal table.")
@click.option("--all", "every", is_flag=True, help="Every run, not the newest only.")
@click.option(
    "--compare",
    nargs=2,
    metavar="OLD NEW",
    help="Two runs side by side: files, folders (their newest run), or machine=, torch= and "
    "commit= with the beginning of a value (the newest such run in PATH).",
)
@AS_JSON
def report(
    path: Path | None,
    markdown: bool,
    every: bool,
    compare: tuple[str, str] | None,
    as_json: bool,
) -> int:
    """Print the newest run of PATH: a run's file, or a folder of them (default: results).

    --compare refuses runs that differ in more than one of machine, torch and commit, unless both
    are named by all that differs; and cases whose data, threads or other settings are not equal.

    \b
      stepbench report --compare torch=2.12 torch=2.13
      stepbench report --compare machine=1x-nvidia,torch=2.12 machine=2x-nvidia,torch=2.13
    """
    folder = path or Path("results")
    if compare and every:
        raise StepbenchError("--compare takes two runs and --all every one; choose one of them")
    if compare:
        _compare(folder, compare, markdown, as_json)
    else:
        _report(folder, markdown, every, as_json)
    return 0


def _report(path: Path, markdown: bool, every: bool, as_json: bool) -> None:
    from stepbench.report import tables
    from stepbench.store import read_path

    files, problems = read_path(path)
    for problem in problems:
        click.echo(f"stepbench: {problem}", err=True)
    if not files:
        raise StepbenchError(f"{path}: no readable run there; `stepbench run` makes one")
    shown = files if every else files[-1:]
    if as_json:
        tell([tables.as_json(file) for file in shown])
    else:
        tell("\n\n".join((tables.markdown if markdown else tables.terminal)(f) for f in shown))


def _compare(results: Path, runs: tuple[str, str], markdown: bool, as_json: bool) -> None:
    from stepbench.report import side_by_side
    from stepbench.report.compare import compare, select

    (old, old_keys), (new, new_keys) = (select(results, text) for text in runs)
    comparison = compare(old, new, old_keys & new_keys)
    if as_json:
        tell(side_by_side.as_json(comparison))
    else:
        tell((side_by_side.markdown if markdown else side_by_side.terminal)(comparison))


@stepbench.command("list")
@AS_JSON
def list_(as_json: bool) -> int:
    """Show workloads, axes and techniques, and why this machine cannot run some."""
    from tabulate import tabulate

    from stepbench.measuring.sweep import this_machine
    from stepbench.measuring.team import default_ranks
    from stepbench.training import techniques, workloads

    machine = this_machine()
    any_case = Case(workload=workloads.default(machine), ranks=default_ranks(machine))
    rows = [
        {
            "axis": axis.name,
            "technique": technique.name + (" (baseline)" if name == axis.baseline else ""),
            "about": technique.about,
            "not here because": techniques.not_here(technique, any_case, machine),
        }
        for axis in techniques.AXES
        for name in axis.examples
        for technique in [techniques.find(name)[1]]
    ]
    if as_json:
        tell({"workloads": workloads.names(), "techniques": rows})
        return 0
    tell(tabulate([{k: v or "" for k, v in row.items()} for row in rows], headers="keys"))
    families = [f"{word}N" for axis in techniques.AXES for word in axis.families]
    tell(
        f"\nAny N: {', '.join(families)}.\nWorkloads: {', '.join(workloads.names())}; "
        f"with parameters {workloads.SPELLING}."
    )
    return 0


@stepbench.command()
@AS_JSON
def machine(as_json: bool) -> int:
    """Describe this machine as its records do: no host name, driver or kernel."""
    from stepbench.measuring.sweep import this_machine
    from stepbench.records.machine import summary

    described = this_machine()
    tell(described if as_json else f"{described['name']}: {summary(described)}")
    return 0


@stepbench.command()
def publish() -> int:
    """Write the dashboard of this project's `asv.conf.json`; it works offline."""
    from stepbench.history.publish import publish as write

    folder = write(Path.cwd())
    tell(
        f"dashboard in {folder}: open {folder / 'techniques' / 'techniques.html'} in a browser, "
        "or `asv preview` for all of it"
    )
    return 0


@stepbench.command()
@click.argument("workload", required=False, metavar="[MODULE:ATTRIBUTE]")
def init(workload: str | None) -> int:
    """Have ASV measure this repository's commits, on your own workload.

    Writes asv.conf.json and benchmarks/ into the current repository, and overwrites nothing.
    MODULE:ATTRIBUTE is a stepbench.Workload or a function that makes one; name it in
    benchmarks/techniques.py later if there is none yet.
    """
    from stepbench.history.project import PLACEHOLDER, start

    written = start(Path.cwd(), workload)
    tell(f"wrote {', '.join(written)}; next:")
    if workload is None:
        tell(f"  name your workload instead of {PLACEHOLDER} in benchmarks/techniques.py")
    tell("  asv run HEAD^!       measure the last commit (a range: asv run HEAD~5..HEAD)")
    tell("  stepbench publish    write the dashboard")
    return 0


stepbench.add_command(gate)
stepbench.add_command(selfcheck)


def main() -> None:
    """The console script: mistakes are one line and exit code 2, never a traceback."""
    # Workloads of one's own are imported from here; last, so that nothing here hides a library.
    sys.path.append(str(Path.cwd()))
    try:
        code = stepbench(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        click.echo(f"stepbench: {error.format_message()}", err=True)
        code = 2
    except StepbenchError as error:
        click.echo(f"stepbench: {'--' if error.argument else ''}{error}", err=True)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("stepbench: stopped; the same command goes on from here", err=True)
        code = 130
    sys.exit(code)
