"""What the measurer's process does for thresholds: describe the machine, measure a round, pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.measuring.measure import measure
from stepbench.measuring.pairs import PairedRunner, PairFailed, method_for, order_of
from stepbench.measuring.process import one_line
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import claimed_machine
from stepbench.records.case import Case
from stepbench.records.pair import Pair, Side
from stepbench.records.run import Record
from stepbench.server import serve, served
from stepbench.training.techniques import incompatible, parse
from stepbench.training.workloads import canonical, default, load


def machine() -> dict[str, Any]:
    """This machine, with the one GPU that is measured on."""
    return claimed_machine()


def case(
    workload: str | None, combination: str, ranks: int, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """The case of these spellings; without a workload, of that machine's default."""
    chosen = canonical(workload or default(machine))
    found = Case(workload=chosen, combination=parse(combination), ranks=ranks)
    if reason := incompatible(load(chosen), found):
        raise StepbenchError(reason)
    return found.to_json()


def record(case: dict[str, Any]) -> dict[str, Any]:
    """One round of the case beside its baseline."""
    known = Case.from_json(case)
    settings = Settings(rounds=1, extra_rounds=0)
    return measure(known, settings, claimed_machine(known.ranks)).to_json()


def pairs(record: dict[str, Any], first: int, many: int) -> dict[str, Any]:
    """Pairs `first` to `first + many` of a case that `record` measured, beside its baseline.

    Returns:
        `{"pairs": [{"speed": …, "disturbances": […]}, …], "outcome": …}`: the baseline's seconds
        over the case's of each, and what ended them early, or None.
    """
    known = Record.from_json(record)
    sides = Side(case=known.case.baseline), Side(case=known.case)
    seen, here = known.rounds[0], claimed_machine(known.case.ranks)
    method = method_for(seen.baseline, seen.case, ranks=known.case.ranks, machine=here)
    told: list[dict[str, Any]] = []
    try:
        with PairedRunner(*sides, here) as runner:
            for index in range(first, first + many):
                told.append(_told(runner.pair(method, order_of(index))))
    except PairFailed as failed:
        return {"pairs": told, "outcome": failed.outcome.to_json()}
    return {"pairs": told, "outcome": None}


def _told(pair: Pair) -> dict[str, Any]:
    # Wall time on a CPU too: a claim is about how long a step takes.
    return {"speed": math.exp(-pair.log_ratio("wall_total")), "disturbances": pair.disturbances}


HANDLERS: Mapping[str, Callable[..., Any]] = {
    "case": case,
    "machine": machine,
    "record": record,
    "pairs": pairs,
}


def main() -> None:
    """Call handlers for the process that started this one."""
    serve(lambda control, request: _called(*request), *served())


def _called(handler: str, *arguments: Any) -> Mapping[str, Any]:
    try:
        return {"answer": HANDLERS[handler](*arguments), "mistake": None}
    except StepbenchError as mistake:
        return {"answer": None, "mistake": str(mistake)}
    except Exception as error:
        return {"answer": None, "mistake": f"measuring failed: {one_line(error)}"}
