"""Result tables for a terminal, for Markdown and as JSON, from records only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from stepbench.records import machine
from stepbench.report import formats, series
from stepbench.report.columns import (
    BUDGET_LEGEND,
    DEVICE_COLUMNS,
    DEVICE_LEGEND,
    RANK_COLUMNS,
    RANK_LEGEND,
    columns_of,
)
from stepbench.report.rows import PARTS, Figures, Row, Table, tables
from stepbench.stats.measures import MINIMUM_ROUNDS_FOR_INTERVAL
from stepbench.store import RunFile

LEFT = ("combination", "outcome", "speed-up", "collectives a step", "clock limited by")

LEGEND = (
    "step: all time over all steps, a mean; speed-up: the baseline's / the case's, of the same "
    "batches, median over paired rounds [95% interval], above 1 is faster; memory: peak of a "
    "steady step / the baseline's, below 1 needs less.",
    "grad+act: the peak beyond parameters and optimizer state; loss diff: largest relative "
    "difference of loss or gradient norm from the baseline, drift over the first updates "
    "included, 0 is bit-equal; items: tokens or images, what the loss is a mean over; "
    "1 MiB = 2^20 bytes.",
)


def terminal(file: RunFile) -> str:
    """A run's tables for a terminal; no control character from a record reaches it."""
    grown = series.grid(file, "simple", formats.plain)
    return _joined(file, [_terminal(table) for table in tables(file)], grown)


def markdown(file: RunFile) -> str:
    """A run's tables in Markdown; nothing in a record acts as markup."""
    grown = series.grid(file, "pipe", formats.markdown)
    return _joined(file, [_markdown(table) for table in tables(file)], grown)


def as_json(file: RunFile) -> dict[str, Any]:
    """A run's derived statistics in base units, null where a case has no finite number."""
    return {
        "run": file.run.to_json(),
        "tables": [
            {"workload": table.workload, "rows": [_json_row(row) for row in table.rows]}
            for table in tables(file)
        ],
        "series": [dataclasses.asdict(one) for one in series.series(file)],
    }


def caption(table: Table) -> tuple[str, ...]:
    """Plain lines: what was measured and on what, how, and how fast the machine itself was."""
    run = table.run
    few = any(rounds < MINIMUM_ROUNDS_FOR_INTERVAL for rounds in table.rounds)
    how = (
        f"torch {' and '.join(table.torch_versions) or 'unknown'}",
        formats.span(table.rounds, "round"),
        f"{formats.span(table.steps, 'step')} a process",
        f"{formats.threads(table.threads)} a rank" if table.threads else "",
        f"~: no interval below {MINIMUM_ROUNDS_FOR_INTERVAL} rounds" if few else "",
        f"memory: {' and '.join(table.memory_methods) or 'not read'}",
        f"ruler {run.measure_version}",
        formats.commit(run),
        formats.moment(run.started_at),
    )
    return (
        formats.plain(f"{table.workload} on {machine.summary(run.machine)}"),
        formats.plain(", ".join(part for part in how if part)),
        *([formats.calibration(table.calibrations)] if table.calibrations else []),
    )


def grid(table: Table, style: str, clean: Callable[[str], str]) -> tuple[str, list[str]]:
    """The table in one of tabulate's styles, and the cleaned notes its outcomes refer to."""
    notes: dict[str, int] = {}
    columns, legends = columns_of(table)
    cells = [_cells(row, columns, notes, clean) for row in table.rows]
    text = _grid(["combination", "outcome", *columns], cells, style) or ""
    told = [f"[{number}] {clean(note)}" for note, number in notes.items()]
    return text, [*told, *map(clean, legends)]


def budget_grid(table: Table, style: str, clean: Callable[[str], str]) -> str | None:
    """Where the time of each case's step goes; None where no step was marked inside."""
    cells = [
        [clean(row.name), *(formats.milliseconds(budget[part]) for part in PARTS)]
        for row in table.rows
        if row.figures and (budget := row.figures.budget)
    ]
    return _grid(["combination", *PARTS], cells, style)


def device_grid(table: Table, style: str, clean: Callable[[str], str]) -> str | None:
    """The GPU's state beside each case; None where none was told."""
    cells = [
        [clean(row.name), *(clean(show(state)) for show in DEVICE_COLUMNS.values())]
        for row in table.rows
        if row.figures and (state := row.figures.device)
    ]
    return _grid(["combination", *DEVICE_COLUMNS], cells, style)


def rank_grid(table: Table, style: str, clean: Callable[[str], str]) -> str | None:
    """What each rank holds and exchanges; None where no case had a process group."""
    cells = [
        [clean(row.name), *(show(ranks) for show in RANK_COLUMNS.values())]
        for row in table.rows
        if row.figures and (ranks := row.figures.ranks)
    ]
    return _grid(["combination", *RANK_COLUMNS], cells, style)


def _grid(headers: list[str], cells: list[list[str]], style: str) -> str | None:
    if not cells:
        return None
    sides = ["left" if header in LEFT else "right" for header in headers]
    return tabulate(cells, headers, style, colalign=sides, disable_numparse=True)


def _further(table: Table, style: str, clean: Callable[[str], str]) -> list[tuple[str, str]]:
    """The tables below the main one, each with its legend."""
    grids = (
        (budget_grid(table, style, clean), BUDGET_LEGEND),
        (rank_grid(table, style, clean), RANK_LEGEND),
        (device_grid(table, style, clean), DEVICE_LEGEND),
    )
    return [(text, legend) for text, legend in grids if text]


def _terminal(table: Table) -> str:
    text, notes = grid(table, "simple", formats.plain)
    below = [
        line
        for more, legend in _further(table, "simple", formats.plain)
        for line in ("", more, "", legend)
    ]
    return "\n".join([*caption(table), "", text, "", *notes, *LEGEND, *below])


def _markdown(table: Table) -> str:
    text, notes = grid(table, "pipe", formats.markdown)
    workload, *how = (formats.markdown(line) for line in caption(table))
    parts = ["  \n".join([f"**{workload}**", *how]), text, "  \n".join([*notes, *LEGEND])]
    for more in _further(table, "pipe", formats.markdown):
        parts += more
    return "\n\n".join(parts)


def _cells(
    row: Row,
    columns: Mapping[str, Callable[[Figures], str]],
    notes: dict[str, int],
    clean: Callable[[str], str],
) -> list[str]:
    """One row as text; the reason behind its outcome goes into `notes`, once."""
    figures = row.figures
    phase, told = row.outcome.phase, [row.outcome.reason] if row.outcome.reason else []
    outcome = f"{row.outcome.kind} in {phase}" if phase else str(row.outcome.kind)
    if figures and figures.disturbances:
        outcome = "ok, disturbed"
        told.append("disturbed: " + "; ".join(figures.disturbances))
    elif figures and figures.set_aside:
        rounds = formats.span([figures.set_aside], "round")
        because = "; ".join(figures.set_aside_because)
        told.append(f"{rounds} left out, measured again: {because}")
    if figures and figures.amortised:
        outcome += ", amortised"
    if figures and figures.unproved:
        outcome += ", unproved"
        names = ", ".join(figures.unproved)
        told.append(f"unproved: {names} was seen active in the eager program, not in the compiled")
    note = "; ".join(told)
    mark = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
    shown = [show(figures) if figures else "" for show in columns.values()]
    return [clean(row.name), clean(outcome) + mark, *shown]


def _json_row(row: Row) -> dict[str, Any]:
    figures = dataclasses.asdict(row.figures) if row.figures else {}
    if not math.isfinite(figures.get("loss_difference") or 0.0):
        figures["loss_difference"] = None
    return {
        "combination": row.name,
        "case": row.case.to_json(),
        "outcome": row.outcome.to_json(),
        "figures": figures or None,
    }


def _joined(file: RunFile, told: list[str], grown: str | None) -> str:
    if not told:
        told = [formats.plain(f"Run {file.run.id} holds no record yet.")]
    return "\n\n".join([*told, *([grown] if grown else [])])
