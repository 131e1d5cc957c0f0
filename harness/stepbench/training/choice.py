"""From what a person asks for to cases: combinations, axes and products of them, ranks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from stepbench.errors import StepbenchError
from stepbench.records.case import Case, Combination
from stepbench.training.techniques import AXES, combine, incompatible, parse
from stepbench.training.techniques.parallel import PARALLEL
from stepbench.training.workloads import of_case


def choose(
    workload: str,
    combinations: Sequence[str] = (),
    choices: Sequence[str] = (),
    *,
    ranks: Sequence[int] = (1,),
    weak: bool = False,
) -> list[Case]:
    """The cases of combinations by name, and of every product of one technique of each choice.

    A choice is an axis (its examples), or technique names with commas between them. What is
    data-parallel is a case for each number of `ranks`, its global batch grown with them if `weak`.

    Raises:
        StepbenchError: an unknown name, or a combination by name that cannot be trained.
    """
    named = [case for one in combinations for case in _on(workload, parse(one), ranks, weak)]
    for case in named:
        if reason := incompatible(of_case(case), case):
            raise StepbenchError(reason)
    varied = product([_names(choice) for choice in choices]) if choices else []
    others = [case for one in varied for case in _on(workload, one, ranks, weak)]
    return list(dict.fromkeys([*named, *others]))


def sweep_of(
    workload: str,
    combinations: Sequence[str],
    choices: Sequence[str],
    *,
    ranks: Sequence[int],
    weak: bool,
) -> list[Case]:
    """What `choose` makes of them, the baseline first; all examples where nothing is chosen."""
    if not combinations and not choices:
        return _everything(workload, ranks=ranks, weak=weak)
    asked = choose(workload, combinations, choices, ranks=ranks, weak=weak)
    return list(dict.fromkeys([Case(workload=workload), *asked]))


def _everything(workload: str, *, ranks: Sequence[int], weak: bool) -> list[Case]:
    """Every example of every axis alone, the baseline first."""
    combinations = [one for axis in AXES for one in product([axis.examples])]
    cases = [case for one in combinations for case in _on(workload, one, ranks, weak)]
    return list(dict.fromkeys([Case(workload=workload), *cases]))


def product(choices: Sequence[Sequence[str]]) -> list[Combination]:
    """Every combination that takes one technique from each list of names; equal ones once."""
    return list(dict.fromkeys(combine(names) for names in itertools.product(*choices)))


def numbers(text: str) -> list[int]:
    """`1,2,4` as numbers; StepbenchError for anything else."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise StepbenchError("numbers from 1 on with commas between them", argument=f"ranks {text}")
    return [int(number) for number in text.split(",")]


def _on(workload: str, combination: Combination, ranks: Sequence[int], weak: bool) -> list[Case]:
    several = PARALLEL.name in combination.techniques
    return [
        Case(
            workload=workload,
            combination=combination,
            ranks=number,
            batch_factor=number if weak else 1,
        )
        for number in (ranks if several else [1])
    ]


def _names(choice: str) -> Sequence[str]:
    axis = next((axis for axis in AXES if axis.name == choice), None)
    return axis.examples if axis else choice.split(",")
