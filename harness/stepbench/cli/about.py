"""The commands `stepbench list` and `stepbench machine`: arguments and printing."""

from __future__ import annotations

import click

from stepbench.cli.options import Output, output


@click.command("list", short_help="workloads, axes and techniques")
@output("table", "json")
def list_(output: Output) -> int:
    """Show workloads, axes and techniques, and why this machine cannot run some."""
    from tabulate import tabulate

    from stepbench.measuring.sweep import this_machine
    from stepbench.measuring.team import default_ranks
    from stepbench.training import workloads
    from stepbench.training.catalogue import catalogue, families

    machine = this_machine()
    rows = catalogue(machine, default_ranks(machine))
    shown = [{key: value or "" for key, value in row.items()} for row in rows]
    output.tell(
        table=lambda: (
            f"{tabulate(shown, headers='keys')}\n\nAny N: {', '.join(families())}.\n"
            f"Workloads: {', '.join(workloads.names())}; with parameters {workloads.SPELLING}."
        ),
        json=lambda: {"workloads": workloads.names(), "techniques": rows},
    )
    return 0


@click.command(short_help="this machine, as records describe it")
@output("table", "json")
def machine(output: Output) -> int:
    """Describe this machine as its records do: no host name, driver or kernel."""
    from stepbench.measuring.sweep import this_machine
    from stepbench.records.machine import summary

    described = this_machine()
    output.tell(table=lambda: f"{described['name']}: {summary(described)}", json=lambda: described)
    return 0
