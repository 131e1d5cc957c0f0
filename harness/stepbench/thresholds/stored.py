"""Claims judged from stored records: the newest run of the machine that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from stepbench.comparable import machine_difference, not_comparable, version_difference
from stepbench.errors import StepbenchError
from stepbench.metrics.beside import SPEEDUP
from stepbench.metrics.summary import all_known
from stepbench.records.case import Case
from stepbench.records.run import Record, Run
from stepbench.report import formats
from stepbench.store import RunFile, read_path
from stepbench.thresholds.asked import Asked, Elsewhere, named
from stepbench.thresholds.floors import Speeds, Unjudged
from stepbench.versions import MEASURE_VERSION


class Stored:
    """Records of one machine, measured by this ruler; `results` is where the runs were read.

    Raises:
        StepbenchError: the runs are of several machines that are not alike.
        Elsewhere: they are all of other machines or versions of torch than asked for.
        Unjudged: they were measured by another ruler.
    """

    machine: Mapping[str, Any]

    def __init__(self, results: Path, runs: Sequence[RunFile], asked: Asked) -> None:
        self._results = results
        here = [file for file in runs if asked.fits_machine(file.run.machine)]
        if not here:
            others = dict.fromkeys(named(file.run.machine) for file in runs)
            raise Elsewhere(
                f"asks for the machine {asked.machine}; {results} holds {', '.join(others)}"
            )
        _require_alike([file.run for file in here], asked)
        fitting = [file for file in here if asked.fits_torch(file.run.software["torch"])]
        if not fitting:
            others = dict.fromkeys(file.run.software["torch"] for file in here)
            raise Elsewhere(f"asks for torch {asked.torch}; {results} holds {', '.join(others)}")
        self._files = [one for one in fitting if one.run.measure_version == MEASURE_VERSION]
        if not self._files:
            differing = version_difference(fitting[-1].run.measure_version, results)
            raise Unjudged(not_comparable(str(differing), "measure again"))
        self.machine = self._files[-1].run.machine

    def record(self, case: Case) -> Record:
        """The case in the newest run that holds it; Unjudged where none does."""
        return self._found(case)[1]

    def speeds(self, case: Case) -> Speeds:
        """One ratio a round that nothing disturbed."""
        rounds = self.record(case).rounds
        calm = [one for one in rounds if not (one.case.disturbances or one.baseline.disturbances)]
        return Speeds(
            ratios=tuple(all_known(map(SPEEDUP.read, calm)) or ()),
            disturbed=len(rounds) - len(calm),
            called="round",
        )

    def measure_more(self, case: Case) -> bool:
        """Records are what they are."""
        return False

    def provenance(self, case: Case) -> str:
        """The run that holds the case, by its time, commit and torch."""
        try:
            run = self._found(case)[0].run
        except Unjudged:
            return f"no record of {case}"
        return (
            f"recorded {formats.moment(run.started_at)} in run {run.id}, {run.source}, "
            f"torch {run.software['torch']}, ruler {run.measure_version}"
        )

    def _found(self, case: Case) -> tuple[RunFile, Record]:
        for file in reversed(self._files):
            if (record := file.find(case)) is not None:
                return file, record
        raise Unjudged(
            f"no record of {case} in {self._results} by ruler {MEASURE_VERSION}; measure it with "
            f"`stepbench run {case.combination} -w {case.workload} --rounds 8`"
        )


def stored_runs(results: Path) -> list[RunFile]:
    """The runs in a folder, a machine's folder in it, or one file, the oldest first.

    What in them could not be understood is left out, with a warning.

    Raises:
        StepbenchError: there are none.
    """
    runs, problems = read_path(results) if results.exists() else ([], [])
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    if not runs:
        raise StepbenchError(f"{results}: no readable run there; `stepbench run` makes one")
    return runs


def _require_alike(runs: list[Run], asked: Asked) -> None:
    """Refuse to choose between machines that may not be compared, and name the key."""
    for one, other in combinations((run.machine for run in runs), 2):
        if key := machine_difference(one, other):
            both = " and ".join(dict.fromkeys((one["name"], other["name"])))
            raise StepbenchError(
                f"machine={asked.machine!r} fits machines that are not alike ({both}): {key}; name "
                "one of them in machine=, or its folder in results="
            )
