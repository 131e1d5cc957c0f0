"""The command `stepbench`: arguments and printing; each verb is one function of its module.

Exit codes: 0 every case has a number or is unsupported here; 1 a case failed, ran out of memory or
would have given a wrong number; 2 a mistake in the arguments or files, told in one line; 3 the time
given with --minutes ran out, run the same command again to go on; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from harness.core import Case, StepbenchError
from harness.verdicts import Gate

EXIT_CODES = (
    "Exit codes: 0 every case has a number or is unsupported here; 1 a case failed, ran out of "
    "memory or would have given a wrong number; 2 a mistake, told in one line; 3 --minutes ran "
    "out, run the same command again to go on; 130 stopped by Ctrl-C."
)
RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder that the records are kept in.",
)
GATE_CASES = ("baseline", "bf16", "accum2", "ckpt1")
GATE_EXIT_CODES = (
    "Exit codes: 0 nothing regressed: a suspect, an improvement, what this machine cannot run and "
    "what too few undisturbed pairs could decide are told and do not fail; 1 a regression: of "
    "time, counters or memory, or a case that gives a number on BASE only; 2 a mistake, told in "
    "one line, a case that may not be compared, or one that gives a number on neither side; 130 "
    "stopped by Ctrl-C."
)
VARY = click.option(
    "--vary",
    "choices",
    multiple=True,
    metavar="AXIS|NAMES",
    help="An axis, or technique names with commas between them. Given several times: every "
    "combination of one choice each.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


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
@click.option("-w", "--workload", metavar="NAME", help="Default: gpt-124m on a GPU, else gpt-1m.")
@click.option("-r", "--rounds", default=2, show_default=True, help="6 or more give intervals.")
@click.option("--steps", default=20, show_default=True, help="Most timed steps a process.")
@click.option("--minutes", type=float, help="Start no case after so long, and exit with 3.")
@click.option("--commit", help="What is measured, where there is no repository to ask.")
@click.option(
    "--deadline-s", default=600.0, show_default=True, help="Kill a process after so long."
)
@RESULTS
@AS_JSON
def run(
    combinations: tuple[str, ...],
    choices: tuple[str, ...],
    workload: str | None,
    rounds: int,
    steps: int,
    minutes: float | None,
    commit: str | None,
    deadline_s: float,
    results: Path,
    as_json: bool,
) -> int:
    """Measure combinations beside their baseline and print the table.

    Without any, every example of every axis is measured alone. A run that was interrupted is
    continued by the same command: what it has measured is kept.

    \b
      stepbench run bf16+accum4 -w gpt-1m@seq=128,batch=4
      stepbench run --vary fp32,bf16 --vary checkpointing --rounds 8
    """
    from harness.measuring.settings import Settings
    from harness.measuring.sweep import close_sweep, open_sweep, sweep, this_machine
    from harness.report import tables
    from harness.report.progress import Bar
    from harness.training.workloads import canonical, default

    if not (minutes is None or minutes >= 0) or not deadline_s > 0:
        raise StepbenchError(
            f"--minutes {minutes} and --deadline-s {deadline_s}: times must be numbers from 0 up"
        )
    settings = Settings(rounds=rounds, max_steps=steps, min_steps=min(5, steps))
    chosen = canonical(workload) if workload else default(this_machine())
    cases = _cases(chosen, combinations, choices)
    file = open_sweep(results, settings, project=Path.cwd(), commit=commit)
    began = time.monotonic()
    with Bar(len(cases)) as bar:
        finished = sweep(
            file,
            cases,
            deadline_s=deadline_s,
            done=bar.done,
            out_of_time=lambda: minutes is not None and time.monotonic() - began > 60 * minutes,
        )
    if finished:
        close_sweep(file)
    _print(tables.as_json(file) if as_json else tables.terminal(file))
    if not finished:
        click.echo("stepbench: time ran out; run the same command again to go on", err=True)
        return 3
    return int(any(record.outcome.kind in ("oom", "failed", "invalid") for record in file.records))


@stepbench.command(epilog=GATE_EXIT_CODES)
@click.argument("base", required=False)
@click.argument("head", required=False)
@click.option(
    "-c",
    "--combination",
    "combinations",
    multiple=True,
    metavar="NAME",
    help=f"A combination to compare, any number of times. Default: {', '.join(GATE_CASES)}.",
)
@VARY
@click.option("-w", "--workload", metavar="NAME", help="Default: gpt-124m on a GPU, else gpt-1m.")
@click.option(
    "--project",
    type=click.Path(path_type=Path),
    default=Path("."),
    help="Another repository, or the folder of one that its code is imported from.",
)
@click.option("--counters-only", is_flag=True, help="Compare what no clock touches, and stop.")
@click.option("--baselines", is_flag=True, help="Hold the counters against the accepted ones.")
@click.option("--accept", is_flag=True, help="Write the working tree's counters as accepted.")
@click.option("--markdown", is_flag=True, help="Print Markdown for a pull request.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML to a file.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a page of the pairs' values.")
@AS_JSON
def gate(
    base: str | None,
    head: str | None,
    combinations: tuple[str, ...],
    choices: tuple[str, ...],
    workload: str | None,
    project: Path,
    counters_only: bool,
    baselines: bool,
    accept: bool,
    markdown: bool,
    junit: Path | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Is HEAD heavier, busier or slower than BASE?

    BASE is a commit; by default where the current branch left the default one. HEAD is a commit; by
    default the working tree with its edits. Both are measured from copies, each with its own code.
    First what no clock touches: operators, FLOPs, bytes. Then time, in pairs of fresh processes
    taking turns; a slowdown has to show in 20 pairs and again in 12 fresh ones.

    \b
      stepbench gate                         this branch, edits included
      stepbench gate v1.0 main -c bf16       two commits, one combination
      stepbench gate --counters-only         no clock: for a busy CI machine
      stepbench gate --accept                keep today's counters in stepbench-baselines/
      stepbench gate --baselines             hold the working tree against them
    """
    from harness.judging import command

    if (baselines or accept) and base:
        raise StepbenchError(
            "--baselines and --accept take the working tree; leave out the commits"
        )
    asked = command.Asked(
        project=project, base=base, head=head, timed=not counters_only, workload=workload
    )
    cases = _cases(command.spelled(asked), combinations, choices, default=GATE_CASES)
    show = _gate_printer(markdown, as_json, junit, plot)
    tell = partial(click.echo, err=True)
    if accept:
        path, missing = command.accept(asked, cases, tell)
        for line in missing:
            click.echo(f"stepbench: no baseline for {line}", err=True)
        _print(f"accepted in {path}: commit it")
        return 0
    if baselines:
        return command.against_baselines(asked, cases, tell, show)
    return command.compare(asked, cases, tell, show)


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
    from harness.report import tables
    from harness.store import read_path

    files, problems = read_path(path)
    for problem in problems:
        click.echo(f"stepbench: {problem}", err=True)
    if not files:
        raise StepbenchError(f"{path}: no readable run there; `stepbench run` makes one")
    shown = files if every else files[-1:]
    if as_json:
        _print([tables.as_json(file) for file in shown])
    else:
        _print("\n\n".join((tables.markdown if markdown else tables.terminal)(f) for f in shown))


def _compare(results: Path, runs: tuple[str, str], markdown: bool, as_json: bool) -> None:
    from harness.report import side_by_side
    from harness.report.compare import compare, select

    (old, old_keys), (new, new_keys) = (select(results, text) for text in runs)
    comparison = compare(old, new, old_keys & new_keys)
    if as_json:
        _print(side_by_side.as_json(comparison))
    else:
        _print((side_by_side.markdown if markdown else side_by_side.terminal)(comparison))


@stepbench.command("list")
@AS_JSON
def list_(as_json: bool) -> int:
    """Show workloads, axes and techniques, and why this machine cannot run some."""
    from tabulate import tabulate

    from harness.measuring.sweep import this_machine
    from harness.training import techniques, workloads

    machine = this_machine()
    rows = [
        {
            "axis": axis.name,
            "technique": technique.name + (" (baseline)" if name == axis.baseline else ""),
            "about": technique.about,
            "not here because": technique.unsupported(
                Case(workload=workloads.default(machine)), machine
            ),
        }
        for axis in techniques.AXES
        for name in axis.examples
        for technique in [techniques.find(name)[1]]
    ]
    if as_json:
        _print({"workloads": workloads.names(), "techniques": rows})
        return 0
    _print(tabulate([{k: v or "" for k, v in row.items()} for row in rows], headers="keys"))
    families = [f"{word}N" for axis in techniques.AXES for word in axis.families]
    _print(
        f"\nAny N: {', '.join(families)}.\nWorkloads: {', '.join(workloads.names())}; "
        f"with parameters {workloads.SPELLING}."
    )
    return 0


@stepbench.command()
@AS_JSON
def machine(as_json: bool) -> int:
    """Describe this machine as its records do: no host name, driver or kernel."""
    from harness.machine import summary
    from harness.measuring.sweep import this_machine

    described = this_machine()
    _print(described if as_json else f"{described['name']}: {summary(described)}")
    return 0


@stepbench.command()
def publish() -> int:
    """Write the dashboard of this project's `asv.conf.json`; it works offline."""
    from harness.history.publish import publish as write

    folder = write(Path.cwd())
    _print(
        f"dashboard in {folder}: open {folder / 'techniques' / 'techniques.html'} in a browser, "
        "or `asv preview` for all of it"
    )
    return 0


@stepbench.command()
@click.argument("workload", required=False, metavar="[MODULE:ATTRIBUTE]")
def init(workload: str | None) -> int:
    """Have ASV measure this repository's commits, on your own workload.

    Writes asv.conf.json and benchmarks/ into the current repository, and overwrites nothing.
    MODULE:ATTRIBUTE is a harness.training.Workload or a function that makes one; name it in
    benchmarks/techniques.py later if there is none yet.
    """
    from harness.history.project import PLACEHOLDER, start

    written = start(Path.cwd(), workload)
    _print(f"wrote {', '.join(written)}; next:")
    if workload is None:
        _print(f"  name your workload instead of {PLACEHOLDER} in benchmarks/techniques.py")
    _print("  asv run HEAD^!       measure the last commit (a range: asv run HEAD~5..HEAD)")
    _print("  stepbench publish    write the dashboard")
    return 0


def _cases(
    workload: str,
    combinations: Sequence[str],
    choices: Sequence[str],
    default: Sequence[str] = (),
) -> list[Case]:
    """What the arguments ask for; a mistake that was named is an error.

    Where they ask for nothing: `default`, or the baseline and every example of every axis. Without
    a `default` the baseline comes first whatever they ask for.
    """
    from harness.measuring.sweep import product
    from harness.training import techniques
    from harness.training.workloads import load

    named = [Case(workload=workload, combination=techniques.parse(one)) for one in combinations]
    for case in named:
        if reason := techniques.refused(load(workload), case.combination):
            raise StepbenchError(reason)
    varied = product(workload, [_names(choice) for choice in choices]) if choices else []
    if named or varied:
        first = [] if default else [Case(workload=workload)]
        return list(dict.fromkeys([*first, *named, *varied]))
    if default:
        return [Case(workload=workload, combination=techniques.parse(one)) for one in default]
    every = [one for axis in techniques.AXES for one in product(workload, [axis.examples])]
    return list(dict.fromkeys([Case(workload=workload), *every]))


def _gate_printer(
    markdown: bool, as_json: bool, junit: Path | None, plot: Path | None
) -> Callable[[Gate], None]:
    """Prints a gate's result, and writes the files that were asked for."""
    from harness.report import gate_tables

    def show(result: Gate) -> None:
        if as_json:
            _print(gate_tables.as_json(result))
        else:
            _print((gate_tables.markdown if markdown else gate_tables.terminal)(result))
        if junit:
            _write(junit, gate_tables.junit(result))
        if plot:
            from harness.report import pair_plot

            _write(plot, pair_plot.page(result))

    return show


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StepbenchError(f"{path}: cannot be written: {error.strerror}") from error


def _names(choice: str) -> Sequence[str]:
    from harness.training.techniques import AXES

    axis = next((axis for axis in AXES if axis.name == choice), None)
    return axis.examples if axis else choice.split(",")


def _print(what: Any) -> None:
    click.echo(what if isinstance(what, str) else json.dumps(what, indent=2))


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
        click.echo(f"stepbench: {error}", err=True)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("stepbench: stopped; the same command goes on from here", err=True)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
