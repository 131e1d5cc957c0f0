"""A process of its own that forks the measuring ones: thresholds are measured there.

A process that runs a test suite may have run operators or started CUDA, and what is forked from it
hangs or fails; the measurer has only imported. The tests' process needs no torch for it either.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.server import Server, ServerDied, interpreter


class Measurer(Server):
    """The handle on that process, started at once. Close it, or it ends with this process.

    It imports from where this process does, and then from `folder`: workloads of one's own.
    """

    def __init__(self, folder: Path) -> None:
        path = [entry for entry in sys.path if entry] + [str(folder)]
        super().__init__(interpreter("stepbench.thresholds.handlers", path))

    def ask(self, handler: str, *arguments: Any) -> Any:
        """Have it call a handler (`thresholds.handlers`); arguments and answer are JSON.

        Raises:
            StepbenchError: the handler ended in one, or in anything else; or the process died.
        """
        self.send([handler, *arguments])
        try:
            told = self.receive()
        except ServerDied as died:
            raise StepbenchError(f"the measuring process died{died}") from None
        if told["mistake"] is not None:
            raise StepbenchError(told["mistake"])
        return told["answer"]
