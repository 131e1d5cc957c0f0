"""What there is to choose from, and what of it a machine cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepbench.records.case import Case
from stepbench.training import techniques, workloads


def catalogue(machine: Mapping[str, Any], ranks: int) -> list[dict[str, str | None]]:
    """A row for each example of each axis: axis, technique, about, and why it is not run here.

    The keys are those that the command prints. `ranks` are those of a data-parallel case.
    """
    case = Case(workload=workloads.default(machine), ranks=ranks)
    return [
        {
            "axis": axis.name,
            "technique": technique.name + (" (baseline)" if name == axis.baseline else ""),
            "about": technique.about,
            "not here because": techniques.not_here(technique, case, machine),
        }
        for axis in techniques.AXES
        for name in axis.examples
        for technique in [techniques.find(name)[1]]
    ]


def families() -> list[str]:
    """The numbered techniques, as `accumN`."""
    return [f"{word}N" for axis in techniques.AXES for word in axis.families]
