"""What several commands take, and how they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder that the records are kept in.",
)
VARY = click.option(
    "--vary",
    "choices",
    multiple=True,
    metavar="AXIS|NAMES",
    help="An axis, or technique names with commas between them. Given several times: every "
    "combination of one choice each.",
)
THREADS = click.option(
    "--threads",
    default=1,
    show_default=True,
    help="Threads of each rank's operators on a CPU, the baseline's too.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def tell(what: Any) -> None:
    """Print text as it is, and anything else as JSON."""
    click.echo(what if isinstance(what, str) else json.dumps(what, indent=2))
