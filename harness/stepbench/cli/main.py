"""The command `stepbench`: its verbs by what they are for; each stands in a module of its own.

A verb is one function: options in, one call of the module whose business it is, text out. It
returns the exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stepbench.cli.about import list_, machine
from stepbench.cli.gate import gate
from stepbench.cli.project import init, publish
from stepbench.cli.report import report
from stepbench.cli.run import run
from stepbench.cli.selfcheck import selfcheck
from stepbench.errors import StepbenchError

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Measure": (run,),
    "Read": (report, publish),
    "Guard": (gate, init),
    "About": (list_, machine, selfcheck),
}
EPILOGUE = """
Shared by the verbs that have a use for them:

\b
  -w, --workload NAME     what is trained
  --minutes M             start nothing new after so long
  --results DIR           where the records are kept
  --format table|markdown|json, --output FILE

\b
Exit: 0 fine · 1 failed or regressed · 2 a mistake, told in one line ·
      3 incomplete or undecided · 128+N stopped by signal N
"""


class Sections(click.Group):
    """A group whose help screen lists the verbs by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(str(one.name).ljust(longest), one.get_short_help_str()) for one in commands]
                )


@click.group(
    cls=Sections, epilog=EPILOGUE, context_settings={"help_option_names": ["-h", "--help"]}
)
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


for _commands in SECTIONS.values():
    for _command in _commands:
        stepbench.add_command(_command)


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
