"""Which cases do a command's arguments ask for?"""

from __future__ import annotations

from collections.abc import Sequence

from harness.core import Case, StepbenchError
from harness.measuring.sweep import product
from harness.training import techniques
from harness.training.workloads import load


def chosen_cases(
    workload: str,
    combinations: Sequence[str],
    choices: Sequence[str],
    default: Sequence[str] = (),
) -> list[Case]:
    """What the arguments ask for; a mistake that was named is an error.

    Where they ask for nothing: `default`, or the baseline and every example of every axis. Without
    a `default` the baseline comes first whatever they ask for.
    """
    named = [Case(workload=workload, combination=techniques.parse(one)) for one in combinations]
    for case in named:
        if reason := techniques.refused(load(workload), case.combination):
            raise StepbenchError(reason)
    varied = product(workload, [_names(choice) for choice in choices]) if choices else []
    if named or varied:
        first = [] if default else [Case(workload=workload)]
        return list(dict.fromkeys([*first, *named, *varied]))
    if default:
        return [Case(workload=workload, combination=techniques.parse(one)) for one in default]
    every = [one for axis in techniques.AXES for one in product(workload, [axis.examples])]
    return list(dict.fromkeys([Case(workload=workload), *every]))


def _names(choice: str) -> Sequence[str]:
    axis = next((axis for axis in techniques.AXES if axis.name == choice), None)
    return axis.examples if axis else choice.split(",")
