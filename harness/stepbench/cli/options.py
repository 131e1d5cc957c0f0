"""What several commands take, and how they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def results_in(folder: str = "results") -> Callable[[Command], Command]:
    """The option for the folder that holds records, with its default."""
    return click.option(
        "--results",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(folder),
        show_default=True,
        metavar="DIR",
        help="Folder that the records are kept in.",
    )


WORKLOAD = click.option(
    "-w", "--workload", metavar="NAME", help="Default: gpt-124m on a GPU, else gpt-1m."
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
