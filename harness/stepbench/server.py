"""A process that answers requests, started, asked and ended in one way.

Fork servers and the measurer of thresholds are such: they have only imported, and fork what
measures. Requests and answers are JSON, one after the other. A server dies with the process that
started it, and what it forks dies with the server. Nothing here imports torch or sets anything: the
process that asks may be somebody's test suite.
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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from multiprocessing import connection, get_context, reduction
from pathlib import Path
from typing import IO, Any

PR_SET_PDEATHSIG = 1
# Letters that are shown of a line that a process has printed.
LINE = 200
# A server that was told to end kills what it forked; then it is killed itself.
END_S = 10.0

# Starts the process, given the descriptor that it answers on and the one of its log.
Start = Callable[[int, int], Any]
# Given the connection and a request, returns the answer.
Answer = Callable[[connection.Connection, Any], Any]


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies, and end it where that has happened already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # died before the signal was asked for
        os._exit(1)


def log_into(log: int) -> None:
    """Let what this process prints go to a file."""
    os.dup2(log, 1)
    os.dup2(log, 2)


def read_log(log: IO[bytes]) -> str:
    """What processes have printed into the file."""
    log.seek(0)
    return log.read().decode(errors="replace").strip()


def last_line(text: str) -> str:
    """The last line of what a process has printed, cut to a readable length; empty if none."""
    return next(iter(text.splitlines()[-1:]), "")[:LINE]


class ServerDied(Exception):
    """The server has ended without an answer; its last line of output, after a colon, if any."""


class Server:
    """The handle on a server, which starts at once; close it, or it ends with this process."""

    def __init__(self, start: Start) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        with theirs:
            self.process = start(theirs.fileno(), self._log.fileno())
        self.control = connection.Connection(ours.detach())

    def send(self, request: Any, descriptor: int | None = None) -> None:
        """Send a request, and an open descriptor after it; `receive` tells if it has died."""
        with suppress(OSError):
            self.control.send_bytes(json.dumps(request).encode())
            if descriptor is not None:
                reduction.send_handle(self.control, descriptor, None)

    def receive(self, timeout_s: float | None = None) -> Any:
        """Its next message.

        Raises:
            TimeoutError: there is none within `timeout_s`.
            ServerDied: there will be none.
        """
        try:
            if self.control.poll(timeout_s):
                return json.loads(self.control.recv_bytes())
        except (EOFError, OSError):
            line = last_line(read_log(self._log))
            raise ServerDied(f": {line}" if line else "") from None
        raise TimeoutError

    def close(self) -> None:
        """End it and whatever it forked."""
        self.control.close()
        self.process.terminate()
        try:
            self._wait(END_S)
        finally:
            self.process.kill()
            self._wait(None)
            self._log.close()

    def _wait(self, timeout_s: float | None) -> None:
        if isinstance(self.process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
        else:
            self.process.join(timeout_s)


def forked(main: Callable[[int, int], None]) -> Start:
    """A fork of this process that runs `main(descriptor, parent)`, in a session of its own."""

    def run(descriptor: int, log: int, parent: int) -> None:
        os.setsid()
        log_into(log)
        main(descriptor, parent)
        os._exit(0)

    def start(descriptor: int, log: int) -> Any:
        arguments = (descriptor, log, os.getpid())
        process = get_context("fork").Process(target=run, args=arguments, daemon=False)
        process.start()
        return process

    return start


def interpreter(
    module: str,
    path: Iterable[str],
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Start:
    """This interpreter on `module.main()`, in a session of its own: Ctrl-C is not for it.

    It imports from `path` and nowhere else, and runs in `folder` if that is given.
    """

    paths = {"PYTHONPATH": os.pathsep.join(filter(None, path))}

    def start(descriptor: int, log: int) -> Any:
        main = f"from {module} import main; main()"
        return subprocess.Popen(
            # -P: nothing but that path; not the folder that it runs in either.
            [sys.executable, "-P", "-c", main, str(descriptor), str(os.getpid())],
            cwd=folder,
            env={**os.environ, **paths, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[descriptor],
            start_new_session=True,
        )

    return start


def serve(answer: Answer, descriptor: int, parent: int, *, hello: Any = None) -> None:
    """Answer requests until the parent hangs up, dies, or says so by SIGTERM.

    `hello` is sent first, if there is one.
    """
    die_with(parent)
    # An exception, so that a process that is being waited for is killed with its group.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        suppress(EOFError, OSError, KeyboardInterrupt),
        connection.Connection(descriptor) as control,
    ):
        if hello is not None:
            control.send_bytes(json.dumps(hello).encode())
        while True:
            told = answer(control, json.loads(control.recv_bytes()))
            control.send_bytes(json.dumps(told).encode())


def served() -> tuple[int, int]:
    """The descriptor and the parent that `interpreter` gave this process."""
    return int(sys.argv[1]), int(sys.argv[2])
