"""The command `stepbench report`: arguments and printing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from stepbench.cli.options import Output, output
from stepbench.errors import StepbenchError


@click.command(short_help="stored runs, or two of them side by side")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--all", "every", is_flag=True, help="Every run, not the newest only.")
@click.option(
    "--compare",
    nargs=2,
    metavar="OLD NEW",
    help="Two runs side by side: files, folders (their newest run), or machine=, torch= and "
    "commit= with the beginning of a value (the newest such run in PATH).",
)
@click.option(
    "--columns",
    metavar="KEY,…",
    help="Show these metrics too, by their keys in JSON: saved_bytes,flops.",
)
@output("table", "markdown", "json")
def report(
    path: Path | None,
    every: bool,
    compare: tuple[str, str] | None,
    columns: str | None,
    output: Output,
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
    if compare and columns:
        raise StepbenchError("--compare has columns of its own; leave --columns out")
    if compare:
        _compare(folder, compare, output)
    else:
        _report(
            folder, every, [key.strip() for key in columns.split(",")] if columns else [], output
        )
    return 0


def _report(path: Path, every: bool, requested: Sequence[str], output: Output) -> None:
    from stepbench.report import tables
    from stepbench.report.columns import with_requested
    from stepbench.store import read_path

    columns = with_requested(requested)
    files, problems = read_path(path)
    for problem in problems:
        click.echo(f"stepbench: {problem}", err=True)
    if not files:
        raise StepbenchError(f"{path}: no readable run there; `stepbench run` makes one")
    shown = files if every else files[-1:]
    output.tell(
        table=lambda: "\n\n".join(tables.terminal(file, columns) for file in shown),
        markdown=lambda: "\n\n".join(tables.markdown(file, columns) for file in shown),
        json=lambda: [tables.as_json(file, columns) for file in shown],
    )


def _compare(results: Path, runs: tuple[str, str], output: Output) -> None:
    from stepbench.report import side_by_side
    from stepbench.report.compare import compare, select

    (old, old_keys), (new, new_keys) = (select(results, text) for text in runs)
    comparison = compare(old, new, old_keys & new_keys)
    output.tell(
        table=lambda: side_by_side.terminal(comparison),
        markdown=lambda: side_by_side.markdown(comparison),
        json=lambda: side_by_side.as_json(comparison),
    )
