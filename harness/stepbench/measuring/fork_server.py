"""A process that has only imported one side's code, and forks every fresh process of that side.

Two source trees cannot be imported by one interpreter, so each side has a forge: for the code of
this process a fork of it, for a tree an interpreter of its own with that tree first on its path. A
tree of Stepbench brings its own package and thereby its own ruler; another project's brings its
workload, and the ruler is this package. A forge dies with the process that started it, and what it
forks dies with the forge.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import connection, get_context, reduction
from pathlib import Path
from typing import Any

import stepbench
from stepbench.comparable import difference, not_comparable, version_difference
from stepbench.errors import StepbenchError
from stepbench.measuring.caches import cold_caches
from stepbench.measuring.launch import PR_SET_PDEATHSIG, Ended, in_child, one_line
from stepbench.measuring.measure import Stopped, measure_process
from stepbench.measuring.paired_worker import play
from stepbench.measuring.preload import preload
from stepbench.measuring.settings import Settings
from stepbench.measuring.sources import PROJECT_TREE, mixed_module
from stepbench.records.case import Case
from stepbench.records.outcome import Outcome
from stepbench.source_roots import import_roots
from stepbench.training.techniques import imports
from stepbench.training.workloads import load
from stepbench.versions import MEASURE_VERSION

# What parent and forge say to each other; a tree's own forge must speak the same.
PROTOCOL = 2
# Importing torch from a cold disk is a matter of many seconds.
START_S = 180.0
# A forge that was told to end kills what it forked; then it is killed itself.
END_S = 10.0
MAIN = "from stepbench.measuring.fork_server import main; main()"


class Forge:
    """The parent's handle on one source tree's forge; a context that leaves no process behind.

    Made, it starts; entered, it has imported. One fresh process at a time: `begin` starts it,
    `ended` waits for its end.

    Raises:
        StepbenchError: the tree's code does not start, or measures by another ruler.
    """

    def __init__(self, tree: str | None, machine: Mapping[str, Any]) -> None:
        self.tree = tree
        self._machine = dict(machine)
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the forge)
        with theirs:
            self._process = (
                _fork(theirs, self._log)
                if tree is None
                else _interpreter(Path(tree), theirs, self._log)
            )
        self.control = connection.Connection(ours.detach())

    def __enter__(self) -> Forge:
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, work: str, case: Case, settings: Settings, channel: int | None = None) -> None:
        """Start a fresh process of a case: `measure`, or `play` on the socket `channel`."""
        request = {
            "work": work,
            "case": case.to_json(),
            "settings": settings.to_json(),
            "machine": self._machine,
        }
        with suppress(OSError):  # a forge that died: `ended` tells
            self.control.send_bytes(json.dumps(request).encode())
            if channel is not None:
                reduction.send_handle(self.control, channel, None)

    def ended(self, timeout_s: float) -> Ended:
        """How the process ended; the answer of a forge that vanished is its own death."""
        try:
            if not self.control.poll(timeout_s):
                return Ended(answer=None, death=f"no end within {timeout_s:g} s", wall_s=timeout_s)
            return Ended(**json.loads(self.control.recv_bytes()))
        except (EOFError, OSError):
            return Ended(answer=None, death=f"its forge died{self._last_words()}", wall_s=0.0)

    def close(self) -> None:
        """End the forge and whatever it forked."""
        self.control.close()
        self._process.terminate()
        try:
            self._wait(END_S)
        finally:
            self._process.kill()
            self._wait(None)
            self._log.close()

    def _wait(self, timeout_s: float | None) -> None:
        if isinstance(self._process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        else:
            self._process.join(timeout_s)

    def _greet(self) -> None:
        where = f"the code of {self.tree or 'this process'}"
        try:
            if not self.control.poll(START_S):
                raise StepbenchError(f"{where} was not imported within {START_S:g} s")
            hello = json.loads(self.control.recv_bytes())
        except (EOFError, OSError):
            raise StepbenchError(f"{where} does not start{self._last_words()}") from None
        if hello["lacks"]:
            raise StepbenchError(f"{where} does not start: it lacks {hello['lacks']}")
        differing = version_difference(hello["ruler"], where) or difference(
            hello, {"protocol": PROTOCOL}, ("protocol",)
        )
        if differing:
            remedy = "measure both sides with packages of one version"
            raise StepbenchError(not_comparable(differing, remedy))

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


def _fork(theirs: socket.socket, log: Any) -> Any:
    process = get_context("fork").Process(
        target=_forked, args=(theirs.fileno(), log.fileno(), os.getpid()), daemon=False
    )
    process.start()
    return process


def _forked(descriptor: int, log: int, parent: int) -> None:
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    _serve(descriptor, parent)
    os._exit(0)


def _interpreter(tree: Path, theirs: socket.socket, log: Any) -> subprocess.Popen[bytes]:
    """This interpreter on the tree's code, then on this package for what the tree lacks."""
    here = str(Path(stepbench.__file__ or "").resolve().parents[1])
    path = [*import_roots(tree), here, os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        # -P: nothing but that path; not the folder that it runs in either.
        [sys.executable, "-P", "-c", MAIN, str(theirs.fileno()), str(os.getpid())],
        cwd=tree,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            PROJECT_TREE: str(tree),
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )


def main() -> None:
    """The forge of a tree: `python -c MAIN descriptor parent`."""
    _serve(int(sys.argv[1]), int(sys.argv[2]))


def _serve(descriptor: int, parent: int) -> None:
    """Answer requests until the parent hangs up, dies, or says so by SIGTERM."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # died before the signal was asked for
        return
    # An exception, so that a process that is being waited for is killed with its group.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with connection.Connection(descriptor) as control, suppress(EOFError, OSError):
        try:
            control.send_bytes(
                json.dumps(
                    {"ruler": MEASURE_VERSION, "protocol": PROTOCOL, "lacks": mixed_module()}
                ).encode()
            )
            while True:
                ended = _answered(control, json.loads(control.recv_bytes()))
                control.send_bytes(json.dumps(ended).encode())
        except KeyboardInterrupt:
            return


def _answered(control: connection.Connection, request: Mapping[str, Any]) -> dict[str, Any]:
    case, settings = Case.from_json(request["case"]), Settings.from_json(request["settings"])
    channel = reduction.recv_handle(control) if request["work"] == "play" else None
    began = time.perf_counter()
    try:
        load(case.workload)  # imported here, so that no fresh process pays for it
        if channel is None:
            answer = {"measurement": measure_process(case, settings, request["machine"]).to_json()}
            return {"answer": answer, "death": None, "wall_s": time.perf_counter() - began}
        preload(imports(case.combination))
        with cold_caches():
            ended = in_child(
                play,
                channel,
                request["case"],
                settings,
                request["machine"],
                deadline_s=settings.deadline_s,
            )
        return {"answer": ended.answer, "death": ended.death, "wall_s": ended.wall_s}
    except Stopped as stopped:
        outcome = stopped.outcome
    except StepbenchError as error:
        outcome = Outcome(kind="failed", reason=str(error))
    except Exception as error:
        outcome = Outcome(kind="failed", reason=one_line(error))
    finally:
        if channel is not None:
            os.close(channel)
    answer = {"outcome": outcome.to_json()}
    return {"answer": answer, "death": None, "wall_s": time.perf_counter() - began}
