"""What several commands take, and how they print."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from stepbench.errors import StepbenchError

Command = TypeVar("Command", bound=Callable[..., Any])
Format = Literal["table", "markdown", "json"]

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
WORKLOAD = click.option(
    "-w", "--workload", metavar="NAME", help="Default: gpt-124m on a GPU, else gpt-1m."
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """In which format a command tells its result, and where: on standard output, or in a file."""

    format: Format
    file: Path | None

    def tell(self, **made: Callable[[], Any]) -> None:
        """Print or write what the function of the chosen format makes: text, or data as JSON.

        Raises:
            StepbenchError: the file cannot be written.
        """
        text = text_of(made[self.format]())
        if self.file is None:
            click.echo(text)
        else:
            write(self.file, text + "\n")


def output(*formats: Format) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The options `--format` and `--output`, as one argument `output` of the command.

    `--json` and `--markdown` do what they did before there was `--format`.
    """

    def add(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def with_output(*arguments: Any, form: Format, file: Path | None, **named: Any) -> int:
            aliases = [one for one in formats[1:] if named.pop(f"as_{one}")]
            chosen: set[Format] = {*aliases, *([form] if form != formats[0] else [])}
            if len(chosen) > 1:
                raise StepbenchError(f"one format at a time, not {' and '.join(sorted(chosen))}")
            told = Output(format=chosen.pop() if chosen else form, file=file)
            return command(*arguments, output=told, **named)

        for option in _format_options(formats):
            with_output = option(with_output)
        return with_output

    return add


def _format_options(formats: Sequence[Format]) -> list[Callable[[Any], Any]]:
    """Last first, as decorators are applied."""
    return [
        *(click.option(f"--{one}", f"as_{one}", is_flag=True, hidden=True) for one in formats[1:]),
        click.option(
            "--output",
            "file",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Write the result there instead of printing it.",
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(formats),
            default=formats[0],
            show_default=True,
            help="What the result is printed as.",
        ),
    ]


def text_of(what: Any) -> str:
    """Text as it is, and anything else as JSON."""
    return what if isinstance(what, str) else json.dumps(what, indent=2)


def tell(what: Any) -> None:
    """Print text as it is, and anything else as JSON."""
    click.echo(text_of(what))


def write(path: Path, text: str) -> None:
    """StepbenchError where the file cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StepbenchError(f"{path}: cannot be written: {error.strerror}") from error
