"""Two runs side by side, case by case; what cannot be compared is refused, and the key named.

Of machine, torch and commit one may differ: it is what is compared. The rest has to be equal, or
the difference could not be put down to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepbench import comparable
from stepbench.comparable import VERSION, against, not_comparable
from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record, Run
from stepbench.stats import measures
from stepbench.stats.measures import Estimate
from stepbench.store import RunFile, read_all, read_path

SELECTORS = "machine=…, torch=…, commit=…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians over rounds of both runs, and the new over the old: below 1 is better.

    `memory_ratio` is None where the two peaks were read by unlike methods.
    """

    old_step_s: float
    new_step_s: float
    step_ratio: Estimate
    old_peak_bytes: float
    new_peak_bytes: float
    memory_ratio: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One case of both runs. `figures` is None unless both are `ok` and may be compared."""

    case: Case
    old: Outcome
    new: Outcome
    figures: Figures | None
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
    refused = [pair.notes[0] for pair in pairs if pair.old.ok and pair.new.ok and not pair.figures]
    if refused and not any(pair.figures for pair in pairs):
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
        return Pair(case=old.case, old=old.outcome, new=new.outcome, figures=None, notes=())
    ours, theirs = ([one.case for one in measures.judged(record)] for record in (old, new))
    key = comparable.case_difference(ours[0], theirs[0], differs)
    disturbed = dict.fromkeys(measures.disturbances(old) + measures.disturbances(new))
    notes = [key] if key else [f"disturbed: {one}" for one in disturbed]
    figures = None if key else _figures(ours, theirs, widened=bool(disturbed))
    if figures and not figures.memory_ratio:
        notes.insert(0, against("memory", ours[0].memory.method, theirs[0].memory.method))
    return Pair(
        case=old.case, old=old.outcome, new=new.outcome, figures=figures, notes=tuple(notes)
    )


def _figures(old: Sequence[Measurement], new: Sequence[Measurement], *, widened: bool) -> Figures:
    times = [[measures.step_s(one) for one in side] for side in (old, new)]
    peaks = [[one.memory.steady_step.allocated_bytes for one in side] for side in (old, new)]
    alike = old[0].memory.method == new[0].memory.method
    return Figures(
        old_step_s=statistics.median(times[0]),
        new_step_s=statistics.median(times[1]),
        step_ratio=measures.unpaired_ratio(*times, widened=widened),
        old_peak_bytes=statistics.median(peaks[0]),
        new_peak_bytes=statistics.median(peaks[1]),
        memory_ratio=measures.unpaired_ratio(*peaks, widened=widened) if alike else None,
    )


def _along(old: RunFile, new: RunFile) -> tuple[str, ...]:
    """What of the software differs beside torch, from the first process of each run."""
    ours, theirs = (
        next((one.case.environment for record in file.records for one in record.rounds), {})
        for file in (old, new)
    )
    return comparable.differences(ours, theirs, comparable.COMES_ALONG)


def _cases(file: RunFile) -> str:
    return ", ".join(str(record.case) for record in file.records) or "none"
