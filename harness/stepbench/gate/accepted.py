"""Accepted tallies under version control: what no clock touches, held against the working tree.

One JSON file for each kind of machine and software, in the project's `stepbench-baselines/`: their
counts differ for good reasons, and stand side by side.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stepbench import comparable
from stepbench.comparable import not_comparable, version_difference
from stepbench.errors import StepbenchError
from stepbench.gate.counters import PROCESSES, compared, differences, tally
from stepbench.gate.trees import Tree
from stepbench.measuring.fork_server import ForkServer
from stepbench.measuring.pairs import PairFailed, measured
from stepbench.measuring.settings import Settings
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.outcome import Outcome
from stepbench.records.verdict import CaseVerdict, Gate, Tally
from stepbench.store import now
from stepbench.versions import MEASURE_VERSION

FOLDER = "stepbench-baselines"
ACCEPT = "accept the working tree's counters"
# What beside torch decides which operators run; those installed are part of the key.
DEPENDENCIES = ("bitsandbytes", "deepspeed", "peft", "torchao", "torchvision", "triton")


def key_of(machine: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What decides a case's counts and bytes beside the code; `threads` of each rank, on a CPU."""
    gpu = device_type(machine) == "cuda"
    return {
        "torch": torch.__version__,
        "dependencies": {name: found for name in DEPENDENCIES if (found := _installed(name))},
        "architecture": machine["architecture"],
        "instruction_set": machine["instruction_set"],
        "gpus": [f"{one['name']}, capability {one['capability']}" for one in machine["gpus"]],
        "threads": None if gpu else threads,  # of a GPU's host they are as many as it has cores
    }


def path_of(folder: Path, key: Mapping[str, Any]) -> Path:
    """The file of a key: readable, and its own by a digest."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    where = key["gpus"][0].partition(",")[0] if key["gpus"] else key["instruction_set"]
    words = f"torch-{key['torch']}-{key['architecture']}-{where}-{digest}"
    return folder / FOLDER / (re.sub(r"[^a-z0-9.]+", "-", words.lower()) + ".json")


def tallied(
    tree: Tree,
    cases: Sequence[Case],
    machine: Mapping[str, Any],
    settings: Settings,
    tell: Callable[[str], None],
) -> dict[Case, Tally | Outcome]:
    """Each case's tally in a tree's code, or why it has none."""
    found: dict[Case, Tally | Outcome] = {}
    with ForkServer(str(tree.folder), machine) as forks:
        for case in cases:
            tell(f"{case}: counting")
            try:
                processes = [measured("candidate", forks, case, settings) for _ in range(PROCESSES)]
                found[case] = tally(processes)
            except PairFailed as failed:
                found[case] = failed.outcome
            except StepbenchError as error:
                found[case] = Outcome(kind="invalid", reason=str(error))
    return found


def accept(
    folder: Path,
    machine: Mapping[str, Any],
    found: Mapping[Case, Tally | Outcome],
    threads: int = 1,
) -> tuple[Path, list[str]]:
    """Write the tallies of the cases that have one, and keep the file's other cases.

    Returns:
        The file, and one line for each case that has no tally.

    Raises:
        StepbenchError: no case has one, or the file cannot be read or written.
    """
    missing = [f"{case}: {one}" for case, one in found.items() if isinstance(one, Outcome)]
    tallies = {str(case): one for case, one in found.items() if isinstance(one, Tally)}
    if not tallies:
        raise StepbenchError(f"nothing to accept: {'; '.join(missing)}")
    key = key_of(machine, threads)
    path = path_of(folder, key)
    known = _read(path) if path.exists() else {}
    if version_difference(known.get("ruler"), path.name):
        known = {}
    cases = {**known.get("cases", {}), **{name: one.to_json() for name, one in tallies.items()}}
    written = {"key": key, "ruler": MEASURE_VERSION, "cases": dict(sorted(cases.items()))}
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StepbenchError(f"{path}: cannot be written: {error.strerror}") from error
    return path, missing


def against(
    folder: Path,
    machine: Mapping[str, Any],
    found: Mapping[Case, Tally | Outcome],
    tree: Tree,
    threads: int = 1,
) -> Gate:
    """Hold tallies against the accepted ones.

    Raises:
        StepbenchError: none were accepted on such a machine, or by another ruler.
    """
    known = accepted(folder, machine, threads)
    return Gate(
        reference=f"the baselines in {FOLDER}",
        candidate=tree.name,
        started_at=now(),
        machine=machine,
        torch=torch.__version__,
        measure_version=MEASURE_VERSION,
        timed=False,
        cases=tuple(_verdict(case, one, known) for case, one in found.items()),
    )


def _verdict(case: Case, found: Tally | Outcome, accepted: Mapping[str, Tally]) -> CaseVerdict:
    ok, old = Outcome(kind="ok"), accepted.get(str(case))
    if old is None:
        candidate = found if isinstance(found, Outcome) else ok
        if candidate.kind == "unsupported":
            return CaseVerdict(case=case, reference=candidate, candidate=candidate)
        refused = f"no baseline for this case; {ACCEPT}"
        return CaseVerdict(case=case, reference=ok, candidate=candidate, refused=refused)
    if isinstance(found, Outcome):
        return CaseVerdict(case=case, reference=ok, candidate=found)
    if reason := comparable.difference(old.alike, found.alike):
        return CaseVerdict(case=case, reference=ok, candidate=ok, refused=reason)
    return CaseVerdict(
        case=case,
        reference=ok,
        candidate=ok,
        differences=differences(old, found),
        compared=compared(old, found),
    )


def accepted(folder: Path, machine: Mapping[str, Any], threads: int = 1) -> dict[str, Tally]:
    """The accepted tallies of this kind of machine, by the case's name.

    Raises:
        StepbenchError: there are none, or they are by another ruler.
    """
    key = key_of(machine, threads)
    path = path_of(folder, key)
    if not path.exists():
        told = ", ".join(f"{name}: {value}" for name, value in key.items() if value)
        raise StepbenchError(f"no baseline for this machine kind ({told}) in {FOLDER}; {ACCEPT}")
    read = _read(path)
    if differing := version_difference(read.get("ruler"), path.name):
        raise StepbenchError(not_comparable(differing, f"{ACCEPT} again"))
    try:
        return {name: Tally.from_json(one) for name, one in read["cases"].items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise StepbenchError(f"{path}: {error}; {ACCEPT} again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StepbenchError(f"{path}: cannot be read as baselines: {error}") from error


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
