"""What must be equal for two results to be compared, and the one refusal that names what differs.

Counts, bytes and times depend on more than the code and the techniques. Each list says what must be
equal for a kind of comparison, by the names that stand in records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stepbench.records.measurement import Measurement
from stepbench.records.run import Run
from stepbench.versions import MEASURE_VERSION

VERSION = "measurement version"
# Two hosts of one kind are one machine, so its name and the size of its memory are not here.
MACHINE = ("cpu", "cores", "architecture", "instruction_set", "gpus")
# Kinds of difference between runs: what a person may want to compare.
KINDS = ("machine", "torch", "commit")
# A process' environment: what is trained, and from which allocator.
WORK = ("data_digest", "allocator")
LIBRARIES = ("cuda", "cudnn", "nccl")
# These belong to a host or to a torch, and may differ where one of those does.
COMES_ALONG = ("python", *LIBRARIES)
# On a GPU's host there are as many threads as cores, and they decide no number.
ON_A_CPU = ("threads", "wait_policy")
# Counters of two trees of code, measured on one machine.
COUNTERS = ("torch", *LIBRARIES, "device", "threads", *WORK)


def against(key: str, old: object, new: object) -> str:
    """How a difference is told: `torch: 2.12.0 against 2.13.0`."""
    return f"{key}: {old} against {new}"


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str] | None = None
) -> tuple[str, ...]:
    """Every key whose values are not equal, with both values; all keys of both unless said."""
    asked = dict.fromkeys((*old, *new)) if keys is None else keys
    return tuple(
        against(key, old.get(key), new.get(key)) for key in asked if old.get(key) != new.get(key)
    )


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str] | None = None
) -> str | None:
    """The first key that forbids comparing the two, with both values; None if none does."""
    return next(iter(differences(old, new, keys)), None)


def machine_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first key that makes them two kinds of machines, with both values; None if none does."""
    return difference(old, new, MACHINE)


def version_difference(found: object, where: object) -> str | None:
    """None if `found`, the measurement version of what is in `where`, is this package's."""
    if found == MEASURE_VERSION:
        return None
    return against(VERSION, f"{found} in {where}", f"{MEASURE_VERSION} here")


def run_differences(old: Run, new: Run) -> dict[str, str]:
    """The KINDS in which two runs differ, each with what is not equal."""
    found = {}
    if machine := machine_difference(old.machine, new.machine):
        found["machine"] = machine
    ours, theirs = old.software["torch"], new.software["torch"]
    # Another machine takes another build of the same version: +cpu, +cu130.
    same_version = ours.partition("+")[0] == theirs.partition("+")[0]
    if ours != theirs and not (machine and same_version):
        found["torch"] = f"{ours} against {theirs}"
    if (old.commit, old.edited) != (new.commit, new.edited):
        found["commit"] = f"{old.source} against {new.source}"
    return found


def case_difference(old: Measurement, new: Measurement, apart: Collection[str]) -> str | None:
    """The first key that forbids comparing two processes of one case, with both values.

    `apart` holds the KINDS in which their runs differ.
    """
    keys = [*WORK]
    if not {"machine", "torch"} & set(apart):
        keys += COMES_ALONG
    if "commit" not in apart:
        keys.append("workload_digest")
    if "cpu" in (old.environment.get("device"), new.environment.get("device")):
        keys += ON_A_CPU
    return difference(old.environment, new.environment, keys)


def not_comparable(difference: str, remedy: str = "") -> str:
    """The one refusal: which key differs, its two values, and what to do about it."""
    return f"not comparable: {difference}{f'; {remedy}' if remedy else ''}"
