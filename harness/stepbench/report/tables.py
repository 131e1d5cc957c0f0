"""Result tables for a terminal, for Markdown and as JSON, from records only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from stepbench.metrics.time import PARTS
from stepbench.records import machine
from stepbench.report import formats, series
from stepbench.report.column import Column, Group
from stepbench.report.columns import BUDGET_LEGEND, COLUMNS, groups, legends, shown
from stepbench.report.rows import Figures, Row, Table, tables
from stepbench.stats.measures import MINIMUM_ROUNDS_FOR_INTERVAL, Estimate
from stepbench.store import RunFile

LEGEND = (
    "step: all time over all steps, a mean; speed-up: the baseline's / the case's, of the same "
    "batches, median over paired rounds [95% interval], above 1 is faster; memory: peak of a "
    "steady step / the baseline's, below 1 needs less.",
    "grad+act: the peak beyond parameters and optimizer state; loss diff: largest relative "
    "difference of loss or gradient norm from the baseline, drift over the first updates "
    "included, 0 is bit-equal; items: tokens or images, what the loss is a mean over; "
    "1 MiB = 2^20 bytes.",
)


def terminal(file: RunFile, columns: Sequence[Column] = COLUMNS) -> str:
    """A run's tables for a terminal; no control character from a record reaches it."""
    grown = series.grid(file, "simple", formats.plain)
    return _joined(file, [_terminal(table, columns) for table in tables(file)], grown)


def markdown(file: RunFile, columns: Sequence[Column] = COLUMNS) -> str:
    """A run's tables in Markdown; nothing in a record acts as markup."""
    grown = series.grid(file, "pipe", formats.markdown)
    return _joined(file, [_markdown(table, columns) for table in tables(file)], grown)


def as_json(file: RunFile, columns: Sequence[Column] = COLUMNS) -> dict[str, Any]:
    """A run's derived statistics in base units, null where a case has no finite number.

    ValueError where two metrics would stand under one key.
    """
    return {
        "run": file.run.to_json(),
        "tables": [
            {"workload": table.workload, "rows": [_json_row(row, columns) for row in table.rows]}
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
        run.source,
        formats.moment(run.started_at),
    )
    return (
        formats.plain(f"{table.workload} on {machine.summary(run.machine)}"),
        formats.plain(", ".join(part for part in how if part)),
        *([formats.calibration(table.calibrations)] if table.calibrations else []),
    )


def grid(
    table: Table, style: str, clean: Callable[[str], str], columns: Sequence[Column] = COLUMNS
) -> tuple[str, list[str]]:
    """The table in one of tabulate's styles, and the cleaned notes its outcomes refer to."""
    notes: dict[str, int] = {}
    here = shown(columns, table)
    cells = [_cells(row, here, notes, clean) for row in table.rows]
    text = _grid(["combination", "outcome"], here, cells, style) or ""
    told = [f"[{number}] {clean(note)}" for note, number in notes.items()]
    return text, [*told, *map(clean, legends(here, table))]


def budget_grid(table: Table, style: str, clean: Callable[[str], str]) -> str | None:
    """Where the time of each case's step goes; None where no step was marked inside."""
    cells = [
        [clean(row.name), *(formats.milliseconds(budget[part]) for part in PARTS)]
        for row in table.rows
        if row.figures and (budget := row.figures.budget)
    ]
    return _grid(["combination"], PARTS, cells, style)


def group_grids(
    table: Table, style: str, clean: Callable[[str], str], columns: Sequence[Column] = COLUMNS
) -> list[tuple[Group, str]]:
    """The groups that have a table of their own, where a case has their figures."""
    grids = ((group, _group_grid(group, table, style, clean, columns)) for group in groups(columns))
    return [(group, text) for group, text in grids if text]


def _group_grid(
    group: Group,
    table: Table,
    style: str,
    clean: Callable[[str], str],
    columns: Sequence[Column],
) -> str | None:
    here = shown(columns, table, group)
    cells = [
        [clean(row.name), *(clean(column.text(row.figures)) for column in here)]
        for row in table.rows
        if row.figures and group.told(row.figures)
    ]
    return _grid(["combination"], here, cells, style)


def _grid(
    names: Sequence[str], columns: Sequence[Column | str], cells: list[list[str]], style: str
) -> str | None:
    if not cells:
        return None
    headers = [one if isinstance(one, str) else one.header for one in columns]
    lefts = [isinstance(one, Column) and one.left for one in columns]
    sides = ["left" if left else "right" for left in [*(True for _ in names), *lefts]]
    return tabulate(cells, [*names, *headers], style, colalign=sides, disable_numparse=True)


def _further(
    table: Table, style: str, clean: Callable[[str], str], columns: Sequence[Column]
) -> list[tuple[str, str]]:
    """The tables below the main one, each with its legend."""
    budget = budget_grid(table, style, clean)
    return [
        *([(budget, BUDGET_LEGEND)] if budget else []),
        *((text, group.legend) for group, text in group_grids(table, style, clean, columns)),
    ]


def _terminal(table: Table, columns: Sequence[Column]) -> str:
    text, notes = grid(table, "simple", formats.plain, columns)
    below = [
        line
        for more, legend in _further(table, "simple", formats.plain, columns)
        for line in ("", more, "", legend)
    ]
    return "\n".join([*caption(table), "", text, "", *notes, *LEGEND, *below])


def _markdown(table: Table, columns: Sequence[Column]) -> str:
    text, notes = grid(table, "pipe", formats.markdown, columns)
    workload, *how = (formats.markdown(line) for line in caption(table))
    parts = ["  \n".join([f"**{workload}**", *how]), text, "  \n".join([*notes, *LEGEND])]
    for more in _further(table, "pipe", formats.markdown, columns):
        parts += more
    return "\n\n".join(parts)


def _cells(
    row: Row,
    columns: Sequence[Column],
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
    texts = [column.text(figures) if figures else "" for column in columns]
    return [clean(row.name), clean(outcome) + mark, *texts]


def _json_row(row: Row, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "combination": row.name,
        "case": row.case.to_json(),
        "outcome": row.outcome.to_json(),
        "figures": _json_figures(row.figures, columns) if row.figures else None,
    }


def _json_figures(figures: Figures, columns: Sequence[Column]) -> dict[str, Any]:
    """Each metric by its key, those of a group below the group's."""
    told: dict[str, Any] = {
        "amortised": figures.amortised,
        "disturbances": figures.disturbances,
        "set_aside": figures.set_aside,
        "set_aside_because": figures.set_aside_because,
        "unproved": figures.unproved,
        "budget": figures.budget,
    }
    for group in dict.fromkeys(column.group for column in columns if column.group):
        told[group.key] = {} if group.told(figures) else None
    for column in columns:
        under = told if column.group is None else told[column.group.key]
        if under is None:
            continue
        if column.metric.key in under:
            raise ValueError(f"two figures are called {column.metric.key!r} in JSON")
        under[column.metric.key] = _json_value(figures[column.metric])
    return told


def _json_value(value: Any) -> Any:
    if isinstance(value, Estimate):
        return dataclasses.asdict(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _joined(file: RunFile, told: list[str], grown: str | None) -> str:
    if not told:
        told = [formats.plain(f"Run {file.run.id} holds no record yet.")]
    return "\n\n".join([*told, *([grown] if grown else [])])
