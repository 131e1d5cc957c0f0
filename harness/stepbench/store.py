"""Records on disk: one `.jsonl` a run, at `results/<machine>/<run>.jsonl`.

A line is written whole and flushed to disk, or not at all, so whatever kills a run loses at most
the case it was measuring. The lines of a file, each `{"kind": …, …}`: one `run`, then per case
`begin` and `record` (or `withdrawn`, after Ctrl-C), `calibration` in between, and `end`.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stepbench.errors import StepbenchError, plain
from stepbench.records.case import Case
from stepbench.records.jsonable import ignoring_unknown
from stepbench.records.machine import require_machine
from stepbench.records.outcome import Outcome
from stepbench.records.run import Calibration, Record, Run
from stepbench.versions import RECORD_VERSION

# Files of runs that this process measures, kept open: the lock on one lasts as long as that.
_CLAIMED: dict[Path, int] = {}

DIED = Outcome(
    kind="failed",
    reason="the measuring process itself died during this case; a new run measures it again",
)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """A name that sorts by time and does not clash between hosts."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-") + secrets.token_hex(3)


@dataclass
class RunFile:
    """One run's file: its header, what it holds so far, and how to add to it.

    `cases_begun` holds cases whose measurement started and has no end yet.
    """

    path: Path
    run: Run
    records: list[Record] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)
    cases_begun: list[Case] = field(default_factory=list)
    closed: bool = False

    @classmethod
    def create(cls, results: Path, run: Run) -> RunFile:
        """Start a new file; StepbenchError if it cannot be written."""
        path = results / run.machine["name"] / f"{run.id}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise _unwritable(path, error, 0) from error
        file = cls(path=path, run=run)
        file.claim()
        try:
            file._append("run", {"store_version": RECORD_VERSION, "run": run.to_json()})
        except StepbenchError:
            path.unlink(missing_ok=True)  # without its header it would be unreadable for good
            raise
        return file

    @classmethod
    def read(cls, path: Path) -> tuple[RunFile, list[str]]:
        """Read a file and one line for each thing in it that could not be understood.

        Fields that a newer Stepbench added are left out, and told in one line.

        Raises:
            StepbenchError: the header is missing or of another version.
        """
        with ignoring_unknown() as unknown:
            file, problems = cls._read(path)
        if unknown:
            problems.append(
                f"{path}: a newer stepbench wrote it; left out what this one does not know: "
                f"{plain(', '.join(sorted(unknown)))}"
            )
        return file, problems

    @classmethod
    def _read(cls, path: Path) -> tuple[RunFile, list[str]]:
        lines = _decoded(path)
        number, header = next(lines, (1, None))
        if not isinstance(header, dict) or header.get("kind") != "run":
            raise StepbenchError(f"{path}: line 1 is not the header of a run; move the file away")
        if header.get("store_version") != RECORD_VERSION:
            raise StepbenchError(
                f"{path}: written in layout {header.get('store_version')}, this stepbench reads "
                f"{RECORD_VERSION}; use the version of stepbench that wrote it"
            )
        try:
            file = cls(path=path, run=Run.from_json(header["run"]))
            require_machine(file.run.machine)
            if "torch" not in file.run.software:
                raise ValueError("the run does not say which torch")
        except (ValueError, TypeError, KeyError) as error:
            raise StepbenchError(f"{path}: line 1: {error}; move the file away") from error
        problems = []
        for number, line in lines:
            try:
                file._take(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problems.append(
                    f"{path}: line {number} is torn, damaged or of a newer stepbench, and was left "
                    f"out: {error}"
                )
        return file, problems

    def find(self, case: Case) -> Record | None:
        return next((record for record in self.records if record.case == case), None)

    def claim(self) -> bool:
        """Keep other processes from continuing this run; False if one of them is at it.

        The claim ends with the run or with this process, however that ends.
        """
        path = self.path.resolve()
        if path in _CLAIMED:
            return True
        opened = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            return False
        except OSError:
            pass  # a file system without locks: no worse than before there were any
        _CLAIMED[path] = opened
        return True

    def begin(self, case: Case) -> None:
        """Mark that a case is about to be measured, so that a death during it is told."""
        self._append("begin", {"case": case.to_json()})
        self.cases_begun.append(case)

    def withdraw(self, case: Case) -> None:
        """Take `begin` back: a person stopped the run, the case is to be measured again."""
        self._append("withdrawn", {"case": case.to_json()})
        self.cases_begun.remove(case)

    def add(self, record: Record) -> None:
        self._append("record", {"record": record.to_json()})
        self.records.append(record)
        if record.case in self.cases_begun:
            self.cases_begun.remove(record.case)

    def calibrate(self, calibration: Calibration) -> None:
        self._append("calibration", {"calibration": calibration.to_json()})
        self.calibrations.append(calibration)

    def close(self) -> None:
        """Nothing more belongs to this run: it is not continued."""
        self._append("end", {})
        self.closed = True
        if (claimed := _CLAIMED.pop(self.path.resolve(), None)) is not None:
            os.close(claimed)

    def bury_the_dead(self) -> None:
        """Give every case whose measuring process vanished its outcome, once."""
        for case in list(self.cases_begun):
            self.add(Record(case=case, outcome=DIED, rounds=(), measured_at=now()))

    def _take(self, line: Any) -> None:
        if isinstance(line, Exception):
            raise line
        match line["kind"]:
            case "begin":
                self.cases_begun.append(Case.from_json(line["case"]))
            case "withdrawn":
                self.cases_begun.remove(Case.from_json(line["case"]))
            case "record":
                record = Record.from_json(line["record"])
                self.records.append(record)
                if record.case in self.cases_begun:
                    self.cases_begun.remove(record.case)
            case "calibration":
                self.calibrations.append(Calibration.from_json(line["calibration"]))
            case "end":
                self.closed = True
            case other:
                raise ValueError(f"unknown kind {other!r}")

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, **body}, allow_nan=True) + "\n"
        try:
            with open(self.path, "ab", buffering=0) as out:
                whole = out.seek(0, os.SEEK_END)
                if whole and not _ends_with_newline(self.path):
                    line = "\n" + line
                try:
                    written = out.write(line.encode())
                    if written != len(line.encode()):
                        raise OSError(28, "No space left on device")
                    os.fsync(out.fileno())
                except OSError:
                    out.truncate(whole)
                    raise
        except OSError as error:
            raise _unwritable(self.path, error, len(self.records)) from error


def read_path(path: Path) -> tuple[list[RunFile], list[str]]:
    """`read_all` of a folder, or the one run of a file; StepbenchError if there is neither."""
    if path.is_dir():
        return read_all(path)
    file, problems = RunFile.read(path)
    return [file], problems


def read_all(results: Path) -> tuple[list[RunFile], list[str]]:
    """Every run in `results`, or in one machine's folder of it, oldest first.

    Beside them one line for each thing that was left out.
    """
    files, problems = [], []
    paths = itertools.chain(results.glob("*.jsonl"), results.glob("*/*.jsonl"))
    for path in sorted(paths, key=lambda path: path.name):
        try:
            file, torn = RunFile.read(path)
        except StepbenchError as error:
            problems.append(str(error))
            continue
        files.append(file)
        problems.extend(torn)
    return files, problems


def open_run(results: Path, wanted: Run) -> RunFile:
    """The newest open run that equals `wanted` but for id and time, or a new one.

    One that a living process measures is left to it: its case is not dead.
    """
    files, _ = read_all(results)
    for seen in reversed(files):
        if seen.closed or _identity(seen.run) != _identity(wanted) or not seen.claim():
            continue
        file, _ = RunFile.read(seen.path)  # it may have grown until it was ours
        if not file.closed:
            file.bury_the_dead()
            return file
    return RunFile.create(results, wanted)


def _identity(run: Run) -> str:
    body = {key: value for key, value in run.to_json().items() if key not in ("id", "started_at")}
    # Hosts of one kind differ in it by a few pages, and are one machine.
    body["machine"] = {key: value for key, value in run.machine.items() if key != "memory_bytes"}
    return json.dumps(body, sort_keys=True)


def _decoded(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered lines as JSON; a line that is not JSON comes as the ValueError it raised."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StepbenchError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            yield number, error


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as existing:
        existing.seek(-1, os.SEEK_END)
        return existing.read(1) == b"\n"


def _unwritable(path: Path, error: OSError, kept: int) -> StepbenchError:
    return StepbenchError(
        f"{path}: cannot be written ({error.strerror}); {kept} records in it are safe: "
        "make room and run the same command again"
    )


__all__ = ["DIED", "RunFile", "new_run_id", "now", "open_run", "read_all", "read_path"]
