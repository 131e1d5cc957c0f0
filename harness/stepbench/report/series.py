"""How time and memory grow with a workload's parameter, where a run measured it at several values.

Cases that differ in one numeric parameter only (`gpt-1m@seq=128` to `@seq=1024`) are a series; from
three values on, exponents are fitted: 1 is linear, 2 quadratic. Memory is what forward keeps for
backward: parameters and optimizer state, which no parameter of the data changes, are not in it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tabulate import tabulate

from stepbench.metrics.memory import SAVED_BYTES
from stepbench.metrics.summary import all_known
from stepbench.metrics.time import STEP_S
from stepbench.records.run import Record
from stepbench.stats import measures
from stepbench.store import RunFile

FEWEST = 3
LEGEND = (
    "Exponents, fitted on logarithms by least squares: 1 is linear, 2 quadratic in the parameter; "
    "of the bytes that forward keeps for backward, and of the step's seconds."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One combination over the values of one parameter, which `workload` shows as `seq=…`."""

    workload: str
    chosen: str
    parameter: str
    values: tuple[int, ...]
    memory_exponent: float
    time_exponent: float


def series(file: RunFile) -> list[Series]:
    """Every series of a run, in the order in which it was measured."""
    groups: dict[tuple[str, str, str], dict[int, Record]] = defaultdict(dict)
    for record in file.records:
        if record.outcome.ok:
            for workload, parameter, value in _varied(record.case.workload):
                groups[workload, record.case.chosen, parameter][value] = record
    return [
        _fitted(workload, chosen, parameter, records)
        for (workload, chosen, parameter), records in groups.items()
        if len(records) >= FEWEST
    ]


def grid(file: RunFile, style: str, clean: Callable[[str], str]) -> str | None:
    """The series as a table in one of tabulate's styles, and what they mean; None without any."""
    cells = [
        [
            clean(one.workload),
            clean(one.chosen),
            f"{one.values[0]}–{one.values[-1]} ({len(one.values)})",
            f"{one.memory_exponent:.2f}",
            f"{one.time_exponent:.2f}",
        ]
        for one in series(file)
    ]
    if not cells:
        return None
    headers = ["series", "combination", "values", "memory ~ n^", "time ~ n^"]
    sides = ("left", "left", "right", "right", "right")
    text = tabulate(cells, headers, style, colalign=sides, disable_numparse=True)
    return f"{text}\n\n{LEGEND}"


def _varied(workload: str) -> Iterator[tuple[str, str, int]]:
    """`gpt-1m@seq=128,batch=1` -> (`gpt-1m@seq=…,batch=1`, `seq`, 128), and so for the batch."""
    name, _, spelled = workload.partition("@")
    options = spelled.split(",") if spelled else []
    for index, option in enumerate(options):
        key, _, value = option.partition("=")
        if value.isdecimal() and int(value) > 0:
            rest = [*options[:index], f"{key}=…", *options[index + 1 :]]
            yield f"{name}@{','.join(rest)}", key, int(value)


def _fitted(workload: str, chosen: str, parameter: str, records: dict[int, Record]) -> Series:
    values = sorted(records)
    each = [[one.case for one in records[value].rounds] for value in values]
    saved, seconds = (
        [statistics.median(all_known(map(metric.read, rounds)) or ()) for rounds in each]
        for metric in (SAVED_BYTES, STEP_S)
    )
    return Series(
        workload=workload,
        chosen=chosen,
        parameter=parameter,
        values=tuple(values),
        memory_exponent=measures.exponent(values, saved),
        time_exponent=measures.exponent(values, seconds),
    )
