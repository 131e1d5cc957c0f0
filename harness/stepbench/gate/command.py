"""What `stepbench gate` does: trees, cases and machine put together for each of its questions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stepbench.comparable import not_comparable
from stepbench.errors import StepbenchError
from stepbench.gate import accepted as baselines
from stepbench.gate.gate import SETTINGS, Session, Terms
from stepbench.gate.trees import Project
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import claimed_machine, this_machine
from stepbench.measuring.team import default_ranks, require_threads
from stepbench.records.case import Case
from stepbench.records.verdict import Gate
from stepbench.source_roots import import_roots
from stepbench.training.choice import choose
from stepbench.training.workloads import canonical, default

Tell = Callable[[str], None]
Show = Callable[[Gate], None]
BETTER = "better than accepted: accept the working tree's counters to keep it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to compare: `base` and `head` name commits; None is their default.

    `workload_file` is the one that both sides take today's of, for commits that lack it.
    """

    project: Path
    base: str | None
    head: str | None
    workload: str | None
    workload_file: Path | None = None
    threads: int = 1
    terms: Terms = field(default_factory=Terms)

    @property
    def settings(self) -> Settings:
        """Of each process."""
        return replace(SETTINGS, threads=self.threads)

    @property
    def folder(self) -> Path:
        """Where the project's code is imported from, and its baselines are kept."""
        return self.project.resolve()


def chosen(asked: Asked, combinations: Sequence[str], choices: Sequence[str]) -> list[Case]:
    """The cases of combinations by name and of products of `choices`, on this machine's ranks.

    Raises:
        StepbenchError: no such workload or technique, or threads that this machine has not.
    """
    machine = this_machine()
    require_threads(asked.threads, machine, (*combinations, *choices))
    ranks = [default_ranks(machine)]
    return choose(_spelled(asked), combinations, choices, ranks=ranks)


def _spelled(asked: Asked) -> str:
    """The canonical spelling of the workload asked for, looked up in the project's code."""
    sys.path[:0] = import_roots(asked.folder)
    try:
        return canonical(asked.workload) if asked.workload else default(this_machine())
    finally:
        del sys.path[: len(import_roots(asked.folder))]


def compare(asked: Asked, cases: Sequence[Case], tell: Tell, show: Show) -> int:
    """Compare both sides, show the result, and return the exit code.

    What was measured is shown too where a person or a fork server that does not start ends it.
    """
    project = Project.at(asked.folder)
    base = project.commit(asked.base) if asked.base else project.merge_base()
    head = project.commit(asked.head) if asked.head else None
    machine = claimed_machine(max(case.ranks for case in cases))
    file = asked.workload_file
    with project.tree(base, file) as old, project.tree(head, file) as new:
        session = Session(
            old, new, cases, machine, terms=asked.terms, settings=asked.settings, tell=tell
        )
        try:
            session.run()
        except BaseException:
            if session.measured_any:
                show(session.told())
            raise
        return _ended(session.told(), show)


def against_baselines(asked: Asked, cases: Sequence[Case], tell: Tell, show: Show) -> int:
    """Hold the working tree against the accepted tallies, and return the exit code."""
    machine = claimed_machine(max(case.ranks for case in cases))
    baselines.accepted(asked.folder, machine, asked.threads)  # before anything is measured
    with Project.at(asked.folder).tree(None) as tree:
        found = baselines.tallied(tree, cases, machine, asked.settings, tell)
    result = baselines.against(asked.folder, machine, found, tree, asked.threads)
    for case in result.cases:
        if case.verdict == "improvement":
            tell(f"{case.case}: {BETTER}")
    return _ended(result, show)


def accept(asked: Asked, cases: Sequence[Case], tell: Tell) -> tuple[Path, list[str]]:
    """Write the working tree's tallies: the file, and a line for each case that has none."""
    machine = claimed_machine(max(case.ranks for case in cases))
    with Project.at(asked.folder).tree(None) as tree:
        found = baselines.tallied(tree, cases, machine, asked.settings, tell)
    return baselines.accept(asked.folder, machine, found, asked.threads)


def _ended(result: Gate, show: Show) -> int:
    show(result)
    refused = [f"{case.case}: {case.refused}" for case in result.cases if case.refused]
    if refused and result.exit_code == 2:
        raise StepbenchError(not_comparable(refused[0]))
    return result.exit_code
