"""Two runs side by side, case by case; what cannot be compared is refused, and the key named.

Of machine, torch and commit one may differ: it is what is compared. The rest has to be equal, or
the difference could not be put down to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepbench import comparable
from stepbench.comparable import VERSION, against, not_comparable
from stepbench.errors import StepbenchError
from stepbench.metrics.memory import PEAK_BYTES
from stepbench.metrics.metric import Metric
from stepbench.metrics.summary import all_known
from stepbench.metrics.time import STEP_S
from stepbench.records.case import Case
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record, Run
from stepbench.stats import measures
from stepbench.stats.measures import Estimate
from stepbench.store import RunFile, read_all, read_path

SELECTORS = "machine=…, torch=…, commit=…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A metric that is put side by side.

    `unit` heads its values in tables and `name` its ratio, which JSON has as `ratio_key`.
    """

    metric: Metric[Measurement]
    unit: str
    name: str
    ratio_key: str


COMPARED = (
    Compared(metric=STEP_S, unit="ms", name="time", ratio_key="step_ratio"),
    Compared(metric=PEAK_BYTES, unit="MiB", name="memory", ratio_key="memory_ratio"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Medians over the rounds of both runs, None where it was not observed, and new over old.

    `ratio` is None where one is absent, or the two were read by unlike methods.
    """

    old: float | None
    new: float | None
    ratio: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One case of both runs. `changes`, by metric, is None unless both are `ok` and comparable."""

    case: Case
    old: Outcome
    new: Outcome
    changes: Mapping[Metric[Any], Change] | None
    notes: tuple[str, ...]  # what was refused, by its key; what was disturbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs. `differs` says by kind what is compared, `along` what differs because of it."""

    old: Run
    new: Run
    differs: Mapping[str, str]
    along: tuple[str, ...]
    pairs: tuple[Pair, ...]
    only_old: tuple[Case, ...]
    only_new: tuple[Case, ...]


def select(results: Path, text: str) -> tuple[RunFile, frozenset[str]]:
    """The newest run that `text` names, and the keys it was named by.

    `text` is a run's file, a folder of runs, or a selector of runs in `results`:
    `commit=0123abc`, `machine=1x-nvidia,torch=2.13`.

    Raises:
        StepbenchError: it is none of these, or fits no run, or runs that are not of one kind.
    """
    path = Path(text)
    if not path.exists() and "=" in text:
        wanted = _selector(text)
        runs = [
            file
            for file in read_all(results)[0]
            if all(_fits(key, value, file.run) for key, value in wanted.items())
        ]
    elif path.exists():
        wanted, runs = {}, read_path(path)[0]
    else:
        raise StepbenchError(f"{text!r} is neither a run's file, a folder of runs nor {SELECTORS}")
    if not runs:
        raise StepbenchError(f"{text}: no such run in {results if wanted else path}")
    for key in wanted:
        values = dict.fromkeys(_value(key, file.run) for file in runs)
        if len(values) > 1:
            raise StepbenchError(f"{text}: {key} may be {' or '.join(values)}; write more of it")
    return max(runs, key=lambda file: (file.run.started_at, file.run.id)), frozenset(wanted)


def compare(old: RunFile, new: RunFile, may_differ: frozenset[str] = frozenset()) -> Comparison:
    """Put two runs side by side.

    Of machine, torch and commit those in `may_differ` may differ; any one, where it is empty.

    Raises:
        StepbenchError: they may not be compared, or have no case in common.
    """
    differs = comparable.run_differences(old.run, new.run)
    _refuse(old.run, new.run, differs, may_differ)
    theirs = {record.case: record for record in new.records}
    pairs = [
        _pair(record, theirs[record.case], differs)
        for record in old.records
        if record.case in theirs
    ]
    if not pairs:
        raise StepbenchError(
            f"no case in common: {_cases(old)} against {_cases(new)}; measure the same cases"
        )
    refused = [pair.notes[0] for pair in pairs if pair.old.ok and pair.new.ok and not pair.changes]
    if refused and not any(pair.changes for pair in pairs):
        raise StepbenchError(not_comparable(refused[0]))
    common = {pair.case for pair in pairs}
    return Comparison(
        old=old.run,
        new=new.run,
        differs=differs,
        along=_along(old, new),
        pairs=tuple(pairs),
        only_old=tuple(one.case for one in old.records if one.case not in common),
        only_new=tuple(one.case for one in new.records if one.case not in common),
    )


def _selector(text: str) -> dict[str, str]:
    wanted = dict(part.partition("=")[::2] for part in text.split(","))
    if not wanted.keys() <= set(comparable.KINDS) or not all(wanted.values()):
        raise StepbenchError(f"{text!r}: a run is selected by {SELECTORS}, with commas between")
    return wanted


def _value(key: str, run: Run) -> str:
    match key:
        case "machine":
            return str(run.machine["name"])
        case "torch":
            return run.software["torch"]
        case _:
            return run.commit or ""


def _fits(key: str, value: str, run: Run) -> bool:
    """Whether the run's value begins so; a version in whole numbers: 2.1 is not 2.13."""
    known = _value(key, run)
    if key == "torch":
        return known == value or known.startswith((f"{value}.", f"{value}+"))
    return known.startswith(value)


def _refuse(old: Run, new: Run, differs: Mapping[str, str], may_differ: frozenset[str]) -> None:
    if old.measure_version != new.measure_version:
        differing = against(VERSION, old.measure_version, new.measure_version)
        raise StepbenchError(not_comparable(differing, "measure the older run again"))
    surplus = [kind for kind in differs if kind not in may_differ]
    if surplus and (may_differ or len(surplus) > 1):
        told = "; ".join(f"{kind}: {differs[kind]}" for kind in surplus)
        named = ",".join(f"{kind}=…" for kind in sorted(may_differ.union(surplus)))
        raise StepbenchError(
            not_comparable(
                told,
                f"choose runs alike in {' or '.join(surplus)}, or compare both at once by naming "
                f"both runs as {named}",
            )
        )


def _pair(old: Record, new: Record, differs: Mapping[str, str]) -> Pair:
    if not (old.outcome.ok and new.outcome.ok):
        return Pair(case=old.case, old=old.outcome, new=new.outcome, changes=None, notes=())
    ours, theirs = ([one.case for one in measures.judged(record)] for record in (old, new))
    key = comparable.case_difference(ours[0], theirs[0], differs)
    disturbed = dict.fromkeys(measures.disturbances(old) + measures.disturbances(new))
    notes = [key] if key else [f"disturbed: {one}" for one in disturbed]
    changes = None if key else _changes(ours, theirs, widened=bool(disturbed))
    if changes and not _read_alike(ours, theirs):
        notes.insert(0, against("memory", ours[0].memory.method, theirs[0].memory.method))
    return Pair(
        case=old.case, old=old.outcome, new=new.outcome, changes=changes, notes=tuple(notes)
    )


def _read_alike(old: Sequence[Measurement], new: Sequence[Measurement]) -> bool:
    return old[0].memory.method == new[0].memory.method


def _changes(
    old: Sequence[Measurement], new: Sequence[Measurement], *, widened: bool
) -> dict[Metric[Any], Change]:
    changes = {}
    for metric in (one.metric for one in COMPARED):
        before, after = (all_known(map(metric.read, side)) for side in (old, new))
        comparable_ones = metric.unit != "bytes" or _read_alike(old, new)
        changes[metric] = Change(
            old=statistics.median(before) if before else None,
            new=statistics.median(after) if after else None,
            ratio=measures.unpaired_ratio(before, after, widened=widened)
            if before and after and comparable_ones
            else None,
        )
    return changes


def _along(old: RunFile, new: RunFile) -> tuple[str, ...]:
    """What of the software differs beside torch, from the first process of each run."""
    ours, theirs = (
        next((one.case.environment for record in file.records for one in record.rounds), {})
        for file in (old, new)
    )
    return comparable.differences(ours, theirs, comparable.COMES_ALONG)


def _cases(file: RunFile) -> str:
    return ", ".join(str(record.case) for record in file.records) or "none"
