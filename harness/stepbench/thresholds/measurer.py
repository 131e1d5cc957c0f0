"""A process of its own that forks the measuring ones: floors are measured there, not by the tests.

A process that runs a test suite may have run operators or started CUDA, and what is forked from it
hangs or fails; the measurer has only imported. So the tests' process needs no torch for it either.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from stepbench.errors import StepbenchError

MAIN = "from stepbench.thresholds.handlers import main; main()"
# It kills what it forked when it is told to end; then it is killed itself.
END_S = 10.0


class Measurer:
    """The handle on that process, started at once. Close it, or it ends with this process.

    It imports from where this process does, and then from `folder`: workloads of one's own.
    """

    def __init__(self, folder: Path) -> None:
        path = [entry for entry in sys.path if entry] + [str(folder)]
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        with theirs:
            self._process = subprocess.Popen(
                # -P: nothing but that path. A session of its own: Ctrl-C is for the tests.
                [sys.executable, "-P", "-c", MAIN, str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control = connection.Connection(ours.detach())

    def ask(self, errand: str, *arguments: Any) -> Any:
        """Have it run an errand (`thresholds.handlers`); arguments and answer are JSON.

        Raises:
            StepbenchError: the errand ended in one, or in anything else; or the process died.
        """
        try:
            self._control.send_bytes(json.dumps([errand, *arguments]).encode())
            told = json.loads(self._control.recv_bytes())
        except (EOFError, OSError):
            raise StepbenchError(f"the measuring process died{self._last_words()}") from None
        if told["mistake"] is not None:
            raise StepbenchError(told["mistake"])
        return told["answer"]

    def close(self) -> None:
        """End it and whatever it forked."""
        self._control.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""
