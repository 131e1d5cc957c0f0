"""Many cases into one run's file: opened or continued, calibrated, and closed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stepbench.errors import StepbenchError
from stepbench.measuring.calibrate import calibrate
from stepbench.measuring.lock import GPUS, hold_gpus
from stepbench.measuring.measure import measure
from stepbench.measuring.process import in_child
from stepbench.measuring.settings import Settings
from stepbench.measuring.sources import digest_of_package
from stepbench.measuring.team import launcher
from stepbench.records.case import Case
from stepbench.records.machine import describe, device_type
from stepbench.records.run import Calibration, Record, Run
from stepbench.store import RunFile, new_run_id, now, open_run
from stepbench.versions import MEASURE_VERSION

CALIBRATION_AGE_S = 60.0
# Asking a driver about its devices, or calibrating them, is a matter of seconds.
DEADLINE_S = 120.0


@cache
def this_machine() -> dict[str, Any]:
    """`machine.describe` in a child: this process must not ask torch about CUDA."""
    return _in_child(describe)


def claimed_machine(gpus: int | None = None) -> dict[str, Any]:
    """This machine with the GPUs that it is measured on, held until this process ends.

    One, unless `gpus` or the environment variable STEPBENCH_GPUS asks for more.

    Raises:
        StepbenchError: other sweeps hold too many GPUs.
    """
    if torch.version.cuda and hold_gpus(gpus or _wanted_gpus()):
        this_machine.cache_clear()
    return this_machine()


def _wanted_gpus() -> int:
    text = os.environ.get(GPUS, "1")
    if not text.isdigit() or text == "0":
        raise StepbenchError(f"{GPUS}={text}: how many GPUs to hold is one number from 1 on")
    return int(text)


def open_sweep(
    results: Path,
    settings: Settings,
    *,
    project: Path,
    commit: str | None = None,
    gpus: int | None = None,
) -> RunFile:
    """Continue the run of this machine, commit, ruler and settings, or start one.

    `commit` names what is measured; without it, that of the repository at `project`, if it is one.
    On a GPU host it takes GPUs as `claimed_machine` does, for as long as this process lives.
    """
    edited = False
    if commit is None:
        commit = _git(project, "rev-parse", "HEAD")
        edited = bool(_git(project, "status", "--porcelain", "--untracked-files=no"))
    recorded = settings.to_json()
    del recorded["deadline_s"]
    return open_run(
        results,
        Run(
            id=new_run_id(),
            started_at=now(),
            measure_version=MEASURE_VERSION,
            machine=claimed_machine(gpus),
            commit=commit,
            edited=edited,
            software={
                "torch": version("torch"),
                "stepbench_digest": digest_of_package(),
                **({"launcher": by} if (by := launcher()) else {}),
            },
            settings=recorded,
        ),
    )


def measure_once(file: RunFile, case: Case, deadline_s: float = Settings().deadline_s) -> Record:
    """The case's record in this run: the one that is there, or a new one, stored.

    Ctrl-C withdraws the case, so that continuing the run measures it again.
    """
    if (known := file.find(case)) is not None:
        return known
    _calibrate_if_stale(file)
    settings = Settings(**file.run.settings, deadline_s=deadline_s)
    file.begin(case)
    try:
        record = measure(case, settings, file.run.machine)
    except BaseException:
        file.withdraw(case)
        raise
    file.add(record)
    return record


def close_sweep(file: RunFile) -> None:
    """Calibrate a last time, where anything was measured, and close the run."""
    if any(record.rounds for record in file.records):
        _calibrate(file)
    file.close()


def sweep(
    file: RunFile,
    cases: Iterable[Case],
    *,
    deadline_s: float,
    done: Callable[[Record], None],
    out_of_time: Callable[[], bool],
) -> bool:
    """Measure the cases in order, telling each record; False if time ran out before the last."""
    for case in cases:
        if file.find(case) is None and out_of_time():
            return False
        done(measure_once(file, case, deadline_s))
    return True


def _calibrate_if_stale(file: RunFile) -> None:
    if file.calibrations:
        last = datetime.fromisoformat(file.calibrations[-1].measured_at)
        if (datetime.now(UTC) - last).total_seconds() <= CALIBRATION_AGE_S:
            return
    _calibrate(file)


def _calibrate(file: RunFile) -> None:
    threads = Settings(**file.run.settings).threads
    answer = _in_child(calibrate, device_type(file.run.machine), threads)
    file.calibrate(Calibration.from_json(answer))


def _in_child(work: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    ended = in_child(work, *arguments, deadline_s=DEADLINE_S)
    if ended.death is not None:
        raise StepbenchError(f"this machine cannot be described or calibrated: {ended.death}")
    return dict(ended.answer)


def _git(project: Path, *arguments: str) -> str | None:
    """git's answer, or None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
