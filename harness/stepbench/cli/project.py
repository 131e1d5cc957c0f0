"""The commands `stepbench init` and `stepbench publish`: ASV's side of a project."""

from __future__ import annotations

from pathlib import Path

import click

from stepbench.cli.options import tell


@click.command(short_help="the dashboard of ASV's results and our records")
def publish() -> int:
    """Write the dashboard of this project's `asv.conf.json`; it works offline."""
    from stepbench.history.publish import publish as write

    folder = write(Path.cwd())
    tell(
        f"dashboard in {folder}: open {folder / 'techniques' / 'techniques.html'} in a browser, "
        "or `asv preview` for all of it"
    )
    return 0


@click.command(short_help="watch this repository with ASV")
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
