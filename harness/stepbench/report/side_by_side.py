"""A comparison of two runs for a terminal, for Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from stepbench.metrics.metric import Metric
from stepbench.records import machine
from stepbench.records.case import Case
from stepbench.records.run import Run
from stepbench.report import formats
from stepbench.report.compare import COMPARED, Change, Comparison, Pair

HEADERS = (
    *("case", "outcome"),
    *(
        header
        for one in COMPARED
        for header in (f"old {one.unit}", f"new {one.unit}", f"{one.name} new/old")
    ),
)
ALIGNMENT = ("left", "left", *("right", "right", "left") * len(COMPARED))
LEGEND = (
    "ms: median step; MiB: peak of a steady step, 1 MiB = 2^20 bytes; new/old: below 1 the new run "
    "is better, [95% interval] from 6 rounds a side on, ~ without one.",
    "The runs were not measured in turn, so what else differed between those hours is in the ratio "
    "of times: it nominates a change, it does not prove one.",
)


def terminal(comparison: Comparison) -> str:
    """For a terminal; no control character from a record reaches it."""
    text, notes = _grid(comparison, "simple", formats.plain)
    return "\n".join([*map(formats.plain, _captions(comparison)), "", text, "", *notes, *LEGEND])


def markdown(comparison: Comparison) -> str:
    """In Markdown; nothing in a record acts as markup."""
    text, notes = _grid(comparison, "pipe", formats.markdown)
    above = "  \n".join(map(formats.markdown, _captions(comparison)))
    return f"{above}\n\n{text}\n\n" + "  \n".join([*notes, *LEGEND])


def as_json(comparison: Comparison) -> dict[str, Any]:
    """In base units: seconds and bytes."""
    return {
        "old": comparison.old.to_json(),
        "new": comparison.new.to_json(),
        "differs": dict(comparison.differs),
        "along": comparison.along,
        "cases": [
            {
                "case": pair.case.to_json(),
                "old_outcome": pair.old.to_json(),
                "new_outcome": pair.new.to_json(),
                "figures": _json_figures(pair.changes) if pair.changes else None,
                "notes": pair.notes,
            }
            for pair in comparison.pairs
        ],
        "only_old": [case.to_json() for case in comparison.only_old],
        "only_new": [case.to_json() for case in comparison.only_new],
    }


def _json_figures(changes: Mapping[Metric[Any], Change]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for one in COMPARED:
        key, change = one.metric.key, changes[one.metric]
        told |= {f"old_{key}": change.old, f"new_{key}": change.new}
        told[one.ratio_key] = dataclasses.asdict(change.ratio) if change.ratio else None
    return told


def _captions(comparison: Comparison) -> list[str]:
    differs = [f"{kind}: {values}" for kind, values in comparison.differs.items()]
    lines = [
        f"old: {_which(comparison.old)}",
        f"new: {_which(comparison.new)}",
        "compared: " + ("; ".join(differs) or "two runs of the same machine, torch and commit"),
    ]
    if comparison.along:
        lines.append(f"with it: {'; '.join(comparison.along)}")
    for name, cases in (("old", comparison.only_old), ("new", comparison.only_new)):
        if cases:
            lines.append(f"only in the {name} run: {_listed(cases)}")
    return lines


def _which(run: Run) -> str:
    return (
        f"{machine.summary(run.machine)}, torch {run.software['torch']}, {run.source}, "
        f"{formats.moment(run.started_at)}"
    )


def _listed(cases: tuple[Case, ...]) -> str:
    return ", ".join(map(str, cases))


def _grid(comparison: Comparison, style: str, clean: Callable[[str], str]) -> tuple[str, list[str]]:
    """The table, and the cleaned notes that its outcomes refer to."""
    notes: dict[str, int] = {}
    cells = [_cells(pair, notes, clean) for pair in comparison.pairs]
    text = tabulate(cells, HEADERS, style, colalign=ALIGNMENT, disable_numparse=True)
    return text, [f"[{number}] {clean(note)}" for note, number in notes.items()]


def _cells(pair: Pair, notes: dict[str, int], clean: Callable[[str], str]) -> list[str]:
    kinds = dict.fromkeys((pair.old.kind, pair.new.kind))
    reasons = [one.reason for one in dict.fromkeys((pair.old, pair.new)) if one.reason]
    marks = [f" [{notes.setdefault(one, len(notes) + 1)}]" for one in (*reasons, *pair.notes)]
    cells = [clean(str(pair.case)), clean(" -> ".join(kinds)) + "".join(marks)]
    if pair.changes is None:
        return cells + [""] * (len(HEADERS) - len(cells))
    for one in COMPARED:
        change, show = pair.changes[one.metric], formats.UNITS[one.metric.unit]
        cells += ["" if side is None else show(side) for side in (change.old, change.new)]
        cells.append(formats.estimate(change.ratio) if change.ratio else "")
    return cells
